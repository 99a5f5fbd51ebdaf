import { describe } from 'vitest';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { recordingSuite } from './recording-suite.ts';

describe.skipIf(await gpuMissing())('recordings on WebGPU', () => void recordingSuite({ reads: false }));
