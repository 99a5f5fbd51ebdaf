import { describe } from 'vitest';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { gradientSuite } from './gradients-suite.ts';

const missing = await gpuMissing();

describe.skipIf(missing)('gradients on WebGPU', () => {
  gradientSuite();
});
