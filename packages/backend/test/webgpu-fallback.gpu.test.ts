import { mul, tensor1d } from '@niwaki/tensor';
import type * as Webgpu from '@tensorflow/tfjs-backend-webgpu';
import { describe, expect, test, vi } from 'vitest';
import type { init as Init } from '../src/init.ts';
import { gpuMissing } from '../../testing/src/gpu.ts';

// A module's names can be exchanged in Node only, and the card's bundle has no module to exchange.
const canExchange = typeof process === 'object' && process.versions?.node !== undefined && process.env['VITEST'] !== undefined;
const missing = await gpuMissing();

/** Members of tfjs's backend that its types call private: what another version might have renamed. */
const members = ['recordAndSubmit', 'ensureCommandEncoderReady', 'uploadToGPU', 'tensorMap'] as const;

/** Runs with a tfjs whose backend lacks one of them. */
async function without(member: string, run: (init: typeof Init) => Promise<void>): Promise<void> {
  vi.resetModules();
  vi.doMock('@tensorflow/tfjs-backend-webgpu', async (original) => {
    const actual = await original<typeof Webgpu>();
    class Other extends actual.WebGPUBackend {
      constructor(...args: ConstructorParameters<typeof actual.WebGPUBackend>) {
        super(...args);
        Object.defineProperty(this, member, { value: undefined });
      }
    }
    return { ...actual, WebGPUBackend: Other };
  });
  try {
    await run((await import('../src/init.ts')).init);
  } finally {
    vi.doUnmock('@tensorflow/tfjs-backend-webgpu');
    vi.resetModules();
  }
}

describe.skipIf(missing !== undefined || !canExchange)('where tfjs is another than our shaders are recorded into', () => {
  test.each(members)("webgpu is refused by name without '%s'", async (member) => {
    await without(member, async (init) => {
      await expect(init({ device: 'webgpu', software: true })).rejects.toThrow(/self-test of our shaders failed/);
    });
  });

  test('auto goes on to wasm, says why, and computes there', async () => {
    await without('recordAndSubmit', async (init) => {
      const info = await init({ device: 'auto', software: true, threads: 1 });
      expect(info.device).toBe('wasm');
      expect(info.reason).toMatch(/self-test of our shaders failed/);
      const [x, y] = [tensor1d([1, 2]), tensor1d([3, 4])];
      const product = mul(x, y);
      expect([...(await product.data())]).toEqual([3, 8]);
      for (const tensor of [x, y, product]) tensor.dispose();
    });
  });
});
