import { matMul, memory, packedMatMulOp, runOp, tensor, tidy } from '@niwaki/tensor';
import { expect, it } from 'vitest';
import { init } from '../src/init.ts';
import { distance, kernelDistance, numbers } from './wasm-builds.ts';

const random = numbers(23);

it('starts in a page, on threads where the page is isolated', async () => {
  const info = await init({ device: 'wasm', threads: 2 });
  expect(globalThis.crossOriginIsolated).toBe(true);
  expect(info).toMatchObject({ device: 'wasm', threads: 2 });
});

it('multiplies there as anywhere, on one thread and on two', async () => {
  const [a, b] = [random([300, 200]).dataSync(), random([200, 400]).dataSync()];
  const results: ArrayLike<number>[] = [];
  for (const threads of [1, 2]) {
    await init({ device: 'wasm', threads });
    tidy(() => results.push(matMul(tensor(a, [300, 200]), tensor(b, [200, 400])).dataSync()));
  }
  expect(distance(results[1]!, results[0]!)).toBe(0);
  let dot = 0;
  for (let k = 0; k < 200; k++) dot += a[5 * 200 + k]! * b[k * 400 + 7]!;
  expect(results[0]![5 * 400 + 7]).toBeCloseTo(dot, 4);
});

it('reads packed weights there', async () => {
  await init({ device: 'wasm', threads: 2 });
  const codes = tensor(
    Int32Array.from({ length: 32 * 48 }, (_, i) => Math.imul(i, 0x9e3779b1)),
    [32 * 48],
    'int32',
  );
  const inputs = { x: random([20, 64]), codes, codebook: random([16]), absmax: random([192]) };
  const shape = { format: 'codebook4', out: 192, in: 64, blockSize: 64, transposed: false } as const;
  expect(kernelDistance(packedMatMulOp, inputs, shape, runOp)).toBeLessThan(1e-5);
});

it('says how to serve the binary when it is not found', async () => {
  const { initWasm } = await import('../src/wasm/init-wasm.ts');
  await expect(initWasm({ threads: 5, wasmPaths: `${location.origin}/nowhere/` })).rejects.toThrow(/wasmPaths/);
});

it('keeps no tensor', async () => {
  await init({ device: 'wasm', threads: 2 });
  const before = memory().numTensors;
  tidy(() => void matMul(random([10, 10]), random([10, 1])));
  expect(memory().numTensors).toBe(before);
});
