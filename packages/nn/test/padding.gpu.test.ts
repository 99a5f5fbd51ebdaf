import { init } from '@niwaki/backend';
import { beforeAll } from 'vitest';
import { paddingSuite } from './padding-suite.ts';

beforeAll(async () => {
  await init({ device: 'webgpu', software: true });
});

paddingSuite();
