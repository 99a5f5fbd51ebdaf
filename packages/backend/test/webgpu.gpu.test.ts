import { init } from '@niwaki/backend';
import { memory, tensor1d, mul } from '@niwaki/tensor';
import { beforeAll, expect, test } from 'vitest';

beforeAll(async () => {
  await init({ device: 'webgpu', software: true });
});

test('the device starts, says what it is, and computes', async () => {
  const info = await init({ device: 'webgpu', software: true });
  expect(info.device).toBe('webgpu');
  expect(info.description).not.toBe('');
  const before = memory().numTensors;
  const x = tensor1d([1, 2, 3]);
  const y = mul(x, 2);
  expect([...(await y.data())]).toEqual([2, 4, 6]);
  x.dispose();
  y.dispose();
  expect(memory().numTensors).toBe(before);
});
