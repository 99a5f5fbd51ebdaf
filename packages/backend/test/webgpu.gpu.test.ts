import { init } from '@niwaki/backend';
import { createDraw, memory, mul, noise, tensor1d } from '@niwaki/tensor';
import { backend } from '@tensorflow/tfjs-core';
import { beforeAll, describe, expect, test } from 'vitest';
import { gpuMissing } from '../../testing/src/gpu.ts';

const missing = await gpuMissing();

describe.skipIf(missing)('the WebGPU device', () => {
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

  test('auto takes a graphics card, and refuses by name an adapter that computes on the CPU', async () => {
    const { description } = await init({ device: 'webgpu', software: true });
    const software = /swiftshader|llvmpipe|warp/i.test(description);
    const info = await init({ device: 'auto', threads: 1 });
    expect(info.device).toBe(software ? 'wasm' : 'webgpu');
    if (!software) return;
    expect(info.reason).toContain('computes on the CPU');
    await expect(init({ device: 'webgpu' })).rejects.toThrow(/computes on the CPU/);
  });

  test('a tensor larger than the GPU can bind is refused by name', async () => {
    await init({ device: 'webgpu', software: true });
    const { device } = backend() as unknown as { device: GPUDevice };
    const length = device.limits.maxStorageBufferBindingSize / 4 + 4;
    const address = createDraw(1, 1).at('x');
    expect(() => noise([length], address, 'uniform')).toThrow(/this GPU binds at most/);
  });
});
