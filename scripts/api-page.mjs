// Writes docs/generated/api.md: what niwaki exports. `--check` writes nothing and fails where the file is out of date, as the
// tests do.
import { writeOrCheckBy } from './generated-page.mjs';

writeOrCheckBy('packages/niwaki/test/api.host.test.ts');
