import { setBackend } from '@tensorflow/tfjs-core';
import { dispose, memory, tensor, tidy, type Op, type Tensor } from '@niwaki/tensor';
import { initWasm, type WasmOptions } from '../src/wasm/init-wasm.ts';

/** The builds whose results must agree: with fused multiply-adds and without, on one thread and on two. */
export const wasmBuilds: Readonly<Record<string, WasmOptions>> = {
  'relaxed, one thread': { threads: 1 },
  'relaxed, two threads': { threads: 2 },
  'plain, one thread': { threads: 1, relaxed: false },
  'plain, two threads': { threads: 2, relaxed: false },
};

export async function useBuild(options: WasmOptions): Promise<void> {
  await setBackend((await initWasm(options)).backendName);
}

/** Numbers in [-scale, scale) that a seed repeats. */
export function numbers(seed: number): (shape: readonly number[], scale?: number) => Tensor {
  let state = seed >>> 0;
  const next = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  };
  return (shape, scale = 1) =>
    tensor(
      Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => next() * scale),
      [...shape],
    );
}

/** Largest difference of two arrays, relative to the largest entry of the second; Infinity where one is not finite. */
export function distance(got: ArrayLike<number>, wanted: ArrayLike<number>): number {
  if (got.length !== wanted.length) return Infinity;
  let largest = 1e-30;
  let difference = 0;
  for (let i = 0; i < wanted.length; i++) {
    largest = Math.max(largest, Math.abs(wanted[i]!));
    const d = Math.abs(got[i]! - wanted[i]!);
    if (!(d <= difference)) difference = d;
    if (Number.isNaN(difference)) return Infinity;
  }
  return difference / largest;
}

/** Distance of a kernel's outputs from its reference's. Disposes the inputs; throws on a leak. */
export function kernelDistance<I extends { [name: string]: Tensor }, A extends object>(
  op: Op<I, A>,
  inputs: I,
  attributes: A,
  run: (op: Op<I, A>, inputs: I, attributes: A) => Tensor[],
): number {
  const before = memory().numTensors;
  const worst = tidy(() => {
    const got = run(op, inputs, attributes);
    const wanted = op.reference(inputs, attributes);
    if (got.length !== wanted.length) return Infinity;
    return Math.max(
      ...wanted.map((tensor, i) =>
        String(got[i]!.shape) === String(tensor.shape) ? distance(got[i]!.dataSync(), tensor.dataSync()) : Infinity,
      ),
    );
  });
  if (memory().numTensors !== before) throw new Error(`${op.kernelName} leaks ${memory().numTensors - before} tensors`);
  dispose(inputs);
  return worst;
}
