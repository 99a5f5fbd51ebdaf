// Writes docs/generated/memory.md: how many bytes each method holds, for models by their shapes. The tests hold the formulas
// against measured bytes. `--check` writes nothing and fails where the file is out of date, as the tests do.
import { writeOrCheckBy } from './generated-page.mjs';

writeOrCheckBy('packages/niwaki/test/memory-table.host.test.ts');
