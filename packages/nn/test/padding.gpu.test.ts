import { beforeAll, vi } from 'vitest';
import { init } from '../../backend/src/index.ts';
import { paddingSuite } from './padding-suite.ts';

// The first test compiles and self-tests every kernel, which a software adapter does slowly.
vi.setConfig({ testTimeout: 180_000 });

beforeAll(async () => {
  await init({ device: 'webgpu', software: true });
});

paddingSuite();
