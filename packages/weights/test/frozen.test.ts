/** When an op may multiply with a weight's matrix itself, instead of calling `apply`. */
import { expect, it } from 'vitest';
import { denseParameter, tensor2d, type Tensor } from '@niwaki/tensor';
import {
  affine,
  createCall,
  denseWeight,
  disposeWeight,
  encodeAffine,
  encodeGgufBlocks,
  frozenMatrix,
  ggufBlock,
  masked,
  packMask,
  rowsOfTensor,
  type Call,
  type Weight,
} from '../src/index.ts';

const shape = [4, 32] as const;
const values = Float32Array.from({ length: 4 * 32 }, (_, i) => Math.sin(i));
const plain = createCall({ batch: {} });

const dense = (): Weight => denseWeight(denseParameter('w.weight', tensor2d(values, [...shape]), { role: 'matrix' }));
async function packed(): Promise<Weight> {
  const matrix = tensor2d(values, [...shape]);
  const blocks = await encodeGgufBlocks('w', shape, rowsOfTensor(matrix), 'Q8_0');
  matrix.dispose();
  return ggufBlock('w', shape, 'Q8_0', blocks);
}

/** Whether the call is given a matrix; the weight is disposed. */
function given(weight: Weight, call: (weight: Weight) => Call): boolean {
  const found = frozenMatrix(weight, call(weight)) !== undefined;
  disposeWeight(weight);
  return found;
}

it('gives what a frozen product reads, of a dense, a packed and a masked matrix', async () => {
  const [one, two] = [dense(), await packed()];
  expect(Object.values(frozenMatrix(one, plain)!.parts)).toEqual([one.parts['weight']!.read()]);
  expect(frozenMatrix(one, plain)!.packed).toBeUndefined();
  expect(frozenMatrix(two, plain)!.packed).toMatchObject({ format: 'Q8_0', out: 4, in: 32 });
  [one, two].forEach(disposeWeight);
  const mask = packMask(Uint8Array.from({ length: 128 }, (_, i) => i % 2));
  expect(given(masked('m', dense(), mask), () => plain)).toBe(true);
});

it('gives affine codes where their columns stand as stored, and not where x is rearranged first', async () => {
  const options = { bits: 4, groupSize: 32, grid: 'absmax' } as const;
  const matrix = tensor2d(values, [...shape]);
  const parts = await encodeAffine('w', shape, rowsOfTensor(matrix), options);
  matrix.dispose();
  expect(given(affine('w', shape, parts, options), () => plain)).toBe(true);
  expect(given(affine('w', shape, { ...parts, order: Int32Array.from({ length: 32 }, (_, k) => 31 - k) }, options), () => plain)).toBe(
    false,
  );
  expect(given(affine('w', shape, { ...parts, inputScales: new Float32Array(32).fill(2) }, options), () => plain)).toBe(false);
});

it('gives nothing where apply does more: a gradient, a watch, rounded rows, zeros to restore, another apply', async () => {
  const watching = ({ parts }: Weight): Call =>
    createCall({ batch: {}, watched: new Map<never, Tensor>(Object.values(parts).map((part) => [part as never, part.read()])) });
  expect(given(dense(), watching)).toBe(false);
  for (const weight of [dense(), await packed()]) {
    expect(given(weight, () => createCall({ batch: {}, wanted: new Set([weight]) }))).toBe(false);
  }
  expect(given(await packed(), () => createCall({ batch: {}, activations: 'int8' }))).toBe(false);
  expect(given(masked('m', await packed(), packMask(new Uint8Array(128).fill(1))), () => plain)).toBe(false);
  const base = dense();
  expect(given({ ...base, apply: (x, call) => base.apply(x, call) }, () => plain)).toBe(false);
});
