import { afterAll, describe, expect, it } from 'vitest';
import {
  combineTokens,
  denseParameter,
  dispatchTokens,
  dispose,
  gradientsOf,
  memory,
  tensor2d,
  tidy,
  tokenOrder,
  type Parameter,
  type Tensor,
} from '@niwaki/tensor';
import { createCall, denseWeight, disposeWeight, encodeGgufBlocks, ggufBlock, weightStack, type Weight } from '../src/index.ts';
import { init } from '../../backend/src/index.ts';
import { gpuMissing } from '../../testing/src/gpu.ts';

const missing = await gpuMissing();

const [tokens, picks, count, out, width] = [37, 2, 5, 6, 32];
const wave = (length: number, seed: number): Float32Array => Float32Array.from({ length }, (_, i) => Math.sin(seed + i * 1.7));
/** Expert 3 gets nothing, and a few picks go to none. */
const experts = Int32Array.from({ length: tokens * picks }, (_, i) => [0, 4, 1, -1, 2, 4, 4][(i * 5) % 7]!);

const kinds: Readonly<Record<string, (i: number) => Promise<Weight>>> = {
  dense: async (i) => denseWeight(denseParameter(`e.${i}.weight`, tensor2d(wave(out * width, i), [out, width]), { role: 'matrix' })),
  Q8_0: async (i) => {
    const rows = async ([from, to]: readonly [number, number]): Promise<Float32Array> =>
      wave(out * width, i).slice(from * width, to * width);
    return ggufBlock(`e.${i}`, [out, width], 'Q8_0', await encodeGgufBlocks(`e.${i}`, [out, width], rows, 'Q8_0'));
  },
};

/** A layer of experts on the current device: what it gives, and the gradients of x, of the weights and of what trains. */
async function layer(kind: string): Promise<number[][]> {
  const weights: Weight[] = [];
  for (let i = 0; i < count; i++) weights.push(await kinds[kind]!(i));
  const stack = weightStack('experts', weights);
  const inputs = [
    tensor2d(wave(tokens * width, 7), [tokens, width]),
    tensor2d(wave(tokens * picks, 8), [tokens, picks]),
    tensor2d(wave(tokens * out, 9), [tokens, out]),
    tensor2d(experts, [tokens, picks], 'int32'),
  ] as const;
  const [x, shares, dy, chosen] = inputs;
  const trained: Parameter[] = stack.matrix === undefined ? [] : [stack.matrix];
  const call = createCall({ batch: {}, watched: new Map(trained.map((parameter) => [parameter, parameter.read()])) });
  const { value, gradients } = gradientsOf(
    () =>
      tidy(() => {
        const order = tokenOrder(chosen, count);
        return combineTokens(stack.applyGrouped(dispatchTokens(x, order), order.runs, call), shares, order);
      }),
    [x, shares, ...trained.map((parameter) => parameter.read())],
    (y) => [{ of: y, value: dy }],
  );
  const results: number[][] = [];
  for (const each of [value, ...(gradients as Tensor[])]) results.push([...(await each.data())]);
  // Out of the device's own bytes.
  const one = stack.at(4);
  const dense = one.dense();
  results.push([...(await dense.data())]);
  dispose([...inputs, value, dense, ...(gradients as Tensor[])]);
  disposeWeight(one);
  disposeWeight(stack);
  return results;
}

describe.skipIf(missing)('a layer of experts on WebGPU', () => {
  afterAll(() => init({ device: 'webgpu', software: true }));

  it.each(Object.keys(kinds))(
    'of %s gives what it gives on cpu, forward and back, the same bits each time, and leaves nothing',
    async (kind) => {
      await init({ device: 'cpu' });
      const expected = await layer(kind);
      await init({ device: 'webgpu', software: true });
      const before = memory().numTensors;
      const given = await layer(kind);
      expect(memory().numTensors).toBe(before);
      expect(given.map(({ length }) => length)).toEqual(expected.map(({ length }) => length));
      given.forEach((values, i) => values.forEach((value, e) => expect(value).toBeCloseTo(expected[i]![e]!, 4)));
      expect(await layer(kind)).toEqual(given);
    },
  );
});
