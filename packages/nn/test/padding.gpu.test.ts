import { init } from '../../backend/src/index.ts';
import { beforeAll } from 'vitest';
import { paddingSuite } from './padding-suite.ts';

beforeAll(async () => {
  await init({ device: 'webgpu', software: true });
});

paddingSuite();
