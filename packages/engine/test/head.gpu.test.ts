import { describe } from 'vitest';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { headKernelSuite, headSuite } from './support/head-suite.ts';

describe.skipIf(await gpuMissing())('the head on WebGPU', () => {
  headSuite();
  headKernelSuite();
});
