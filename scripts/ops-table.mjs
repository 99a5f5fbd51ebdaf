// Writes docs/generated/ops.md: which op has a kernel on which device, of those that its test finds right there. `--check`
// writes nothing and fails where the file is out of date, as the test does.
import { writeOrCheckBy } from './generated-page.mjs';

writeOrCheckBy('packages/backend/test/ops-table.gpu.test.ts', { project: 'dawn' });
