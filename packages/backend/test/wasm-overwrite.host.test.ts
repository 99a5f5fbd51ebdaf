import {
  adamOp,
  adamStep,
  codedAdamOp,
  commitUpdate,
  commitUpdateOp,
  dispose,
  memory,
  quantizeBlocks,
  reshape,
  runOp,
  scalar,
  square,
  tensor,
  tidy,
  type Op,
  type Tensor,
} from '@niwaki/tensor';
import { beforeAll, describe, expect, it } from 'vitest';
import { numbers, useBuild, wasmBuilds } from './wasm-builds.ts';

const random = numbers(57);
const adam = { beta1: 0.9, beta2: 0.999, eps: 1e-8 };

interface Case {
  readonly op: Op<Record<string, Tensor>, object>;
  inputs(size: number, ok: number): Record<string, Tensor>;
  readonly attributes: object;
  /** The inputs that the results are written over, in the order of the results. */
  readonly over: readonly string[];
  /** Results that mean something in a refused step too. */
  readonly kept: readonly number[];
}

const corrections = (): Record<string, Tensor> => ({ correction1: scalar(0.19), correction2: scalar(0.002) });
const coded = (size: number, blockSize: number, ok: number): Record<string, Tensor> => {
  const momentum = quantizeBlocks(random([size]), { signed: true, blockSize });
  const variance = quantizeBlocks(square(random([size])), { signed: false, blockSize });
  return {
    gradient: random([size]),
    momentumWords: momentum.words,
    momentumScales: momentum.scales,
    varianceWords: variance.words,
    varianceScales: variance.scales,
    factors: tensor([0.19, 0.002, ok]),
  };
};
const codedCase = (blockSize: number): Case => ({
  op: codedAdamOp as never,
  inputs: (size, ok) => coded(size, blockSize, ok),
  attributes: { ...adam, blockSize, guard: true },
  over: ['gradient', 'momentumWords', 'momentumScales', 'varianceWords', 'varianceScales'],
  kept: [1, 2, 3, 4],
});

const cases: Readonly<Record<string, Case>> = {
  'the moments of Adam': {
    op: adamOp as never,
    inputs: (size, ok) => ({
      gradient: random([size]),
      momentum: random([size]),
      variance: square(random([size])),
      ...corrections(),
      ok: scalar(ok),
    }),
    attributes: adam,
    over: ['gradient', 'momentum', 'variance'],
    kept: [1, 2],
  },
  'moments in 8 bits, blocks of 64': codedCase(64),
  'moments in 8 bits, blocks of 4096': codedCase(4096),
  'a committed value': {
    op: commitUpdateOp as never,
    inputs: (size, ok) => ({ old: random([size]), update: random([size]), ok: scalar(ok) }),
    attributes: { keep: 0.999, scale: -3e-4 },
    over: ['update'],
    kept: [0],
  },
};

const bits = (x: Tensor): Buffer => {
  const { buffer, byteOffset, byteLength } = x.dataSync();
  return Buffer.from(buffer.slice(byteOffset, byteOffset + byteLength));
};

describe.each(Object.entries(wasmBuilds))('Written over what a step owns (%s)', (_, options) => {
  beforeAll(() => useBuild(options));

  describe.each(Object.entries(cases))('%s', (__, { op, inputs, attributes, over, kept }) => {
    it.each([1, 7, 64, 65, 1000, 70_001])('have the bits that they have beside it: %i entries', (size) => {
      const before = memory().numTensors;
      tidy(() => {
        const given = inputs(size, 1);
        const apart = runOp(op, given, { ...attributes, overwrite: false }).map(bits);
        const buffers = memory().numDataBuffers;
        const written = runOp(op, given, { ...attributes, overwrite: true });
        expect(memory().numDataBuffers).toBe(buffers);
        expect(written.map(({ dataId }) => dataId)).toEqual(over.map((name) => given[name]!.dataId));
        expect(written.map(({ shape, dtype }) => [shape, dtype])).toEqual(over.map((name) => [given[name]!.shape, given[name]!.dtype]));
        for (const [i, each] of written.entries()) expect(bits(each).equals(apart[i]!), `result ${i}`).toBe(true);
      });
      expect(memory().numTensors).toBe(before);
    });

    it('leave the old bits where the step is refused, whatever the gradient holds', () => {
      tidy(() => {
        const given = inputs(65, 0);
        const poisoned = { ...given, [over[0]!]: tensor(new Float32Array(65).fill(NaN)) };
        const expected = runOp(op, poisoned, { ...attributes, overwrite: false }).map(bits);
        const buffers = memory().numDataBuffers;
        const written = runOp(op, poisoned, { ...attributes, overwrite: true });
        expect(memory().numDataBuffers).toBe(buffers);
        for (const i of kept) expect(bits(written[i]!).equals(expected[i]!), `result ${i}`).toBe(true);
      });
    });
  });
});

describe('What somebody else holds', () => {
  beforeAll(() => useBuild({ threads: 1 }));

  const step = (inputs: { gradient: Tensor; momentum: Tensor; variance: Tensor }, owned: boolean): Tensor[] =>
    Object.values(adamStep({ ...inputs, correction1: scalar(0.19), correction2: scalar(0.002), ok: scalar(1) }, { ...adam, owned }));
  const fresh = (): Parameters<typeof step>[0] => ({ gradient: random([70]), momentum: random([70]), variance: square(random([70])) });
  const idsOf = (tensors: readonly Tensor[]): Set<object> => new Set(tensors.map(({ dataId }) => dataId));

  it('is not written over: a clone, a view, one tensor in two places, what the caller did not give away', () => {
    tidy(() => {
      const own = fresh();
      expect(idsOf(step(own, true))).toEqual(idsOf(Object.values(own)));

      for (const held of ['gradient', 'momentum', 'variance'] as const) {
        const inputs = fresh();
        const view = reshape(inputs[held], [7, 10]);
        const old = bits(view);
        for (const made of step(inputs, true)) expect(idsOf(Object.values(inputs)).has(made.dataId)).toBe(false);
        expect(bits(view).equals(old)).toBe(true);
      }
      const same = fresh();
      const twice = { ...same, momentum: same.gradient };
      const old = bits(same.gradient);
      for (const made of step(twice, true)) expect(made.dataId).not.toBe(same.gradient.dataId);
      expect(bits(same.gradient).equals(old)).toBe(true);

      const kept = fresh();
      for (const made of step(kept, false)) expect(idsOf(Object.values(kept)).has(made.dataId)).toBe(false);
    });
  });

  it('is not written over either where a value is its own update', () => {
    const value = random([70]);
    const ok = scalar(1);
    const next = commitUpdate(value, value, ok, { scale: 0.5, owned: true });
    expect(next.dataId).not.toBe(value.dataId);
    dispose([value, ok, next]);
  });
});
