// Writes docs/generated/compositions.md: which methods, formats and optimizers go together, as check() computes it.
// `--check` writes nothing and fails where the file is out of date, as the tests do.
import { writeOrCheckBy } from './generated-page.mjs';

writeOrCheckBy('packages/niwaki/test/composition-table.host.test.ts');
