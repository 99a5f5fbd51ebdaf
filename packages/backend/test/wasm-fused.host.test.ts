import {
  adamOp,
  addProductOp,
  addRmsNormOp,
  attentionGradOp,
  attentionOp,
  createDraw,
  crossEntropyGradOp,
  crossEntropyOp,
  dispose,
  geluGradOp,
  geluOp,
  layerNormGradOp,
  layerNormOp,
  loraGradOp,
  loraOp,
  loraProductGradOp,
  loraProductOp,
  memory,
  noiseAttributes,
  rmsNormGradOp,
  rmsNormOp,
  ropeOp,
  runOp,
  softRoundGradOp,
  softRoundOp,
  swigluGradOp,
  swigluOp,
  tensor,
  undecidedGradOp,
  undecidedOp,
  type AttentionAttributes,
  type AttentionInputs,
  type Op,
  type SoftCodesInputs,
  type SoftRoundInputs,
  type Tensor,
} from '@niwaki/tensor';
import { beforeAll, describe, expect, it } from 'vitest';
import { distance, kernelDistance, numbers, useBuild, wasmBuilds } from './wasm-builds.ts';

const random = numbers(7);
const lowRank = numbers(11);
const residual = numbers(13);
const tall = numbers(17);
const centered = numbers(31);

/** Reductions run in another order and exp is a polynomial: a few units in the last place of the largest entry. */
const tolerance = 3e-6;

const error = <I extends { [name: string]: Tensor }, A extends object>(op: Op<I, A>, inputs: I, attributes: A): number =>
  kernelDistance(op, inputs, attributes, runOp);

describe.each(Object.entries(wasmBuilds))('Fused kernels equal their references (%s)', (_, options) => {
  beforeAll(() => useBuild(options));

  for (const [rows, width] of [
    [1, 1],
    [3, 7],
    [5, 64],
    [65, 65],
    [2, 1000],
    [700, 96],
  ] as const) {
    it(`normalizes ${rows} rows of ${width} entries and their gradients`, () => {
      expect(error(rmsNormOp, { x: random([rows, width]), weight: random([width]) }, { eps: 1e-5 })).toBeLessThan(tolerance);
      const branch = { x: residual([rows, width]), delta: residual([rows, width]), weight: residual([width]) };
      expect(error(addRmsNormOp, branch, { eps: 1e-5 })).toBeLessThan(tolerance);
      const inputs = (): { dy: Tensor; x: Tensor; weight: Tensor } => ({
        dy: random([rows, width]),
        x: random([rows, width]),
        weight: random([width]),
      });
      expect(error(rmsNormGradOp, inputs(), { eps: 1e-5, weightGradient: true })).toBeLessThan(4 * tolerance);
      expect(error(rmsNormGradOp, inputs(), { eps: 1e-5, weightGradient: false })).toBeLessThan(4 * tolerance);
      const [dy, x, stream] = [1, 2, 3].map(() => residual([rows, width])) as [Tensor, Tensor, Tensor];
      const beside = { dy, x, weight: residual([width]), beside: stream };
      expect(error(rmsNormGradOp, beside, { eps: 1e-5, weightGradient: true })).toBeLessThan(4 * tolerance);
    });

    it(`centers and normalizes ${rows} rows of ${width} entries, and their gradients`, () => {
      const [x, weight, bias] = [centered([rows, width]), centered([width]), centered([width])];
      expect(error(layerNormOp, { x, weight, bias }, { eps: 1e-2 })).toBeLessThan(tolerance);
      for (const weightGradient of [true, false]) {
        const inputs = { dy: centered([rows, width]), x: centered([rows, width]), weight: centered([width]) };
        expect(error(layerNormGradOp, inputs, { eps: 1e-2, weightGradient })).toBeLessThan(4 * tolerance);
      }
    });

    it(`bends ${rows} rows of ${width + 7} entries by gelu, and their gradients`, () => {
      // Enough that some entry is let through: alone, one far below zero is what a sum of 1 and nearly -1 leaves of the reference.
      const shape = [rows, width + 7];
      for (const form of ['erf', 'tanh'] as const) {
        expect(error(geluOp, { x: centered(shape, 6) }, { form })).toBeLessThan(tolerance);
        expect(error(geluGradOp, { dy: centered(shape), x: centered(shape, 6) }, { form })).toBeLessThan(tolerance);
      }
    });

    it(`gates ${rows} rows of ${width} entries and their gradients`, () => {
      expect(error(swigluOp, { gate: random([rows, width], 20), up: random([rows, width]) }, {})).toBeLessThan(tolerance);
      expect(
        error(swigluGradOp, { dy: random([rows, width]), gate: random([rows, width], 20), up: random([rows, width]) }, {}),
      ).toBeLessThan(tolerance);
    });

    it(`rounds ${rows} groups of ${width} softly, and the gradients of their steps and logits`, () => {
      const codes = (): SoftCodesInputs => ({
        w: random([rows, width], 4),
        logits: random([rows, width], 3),
        scales: tensor(Float32Array.from({ length: rows }, (_, i) => 0.4 + 0.1 * (i % 5))),
        zeros: tensor(Float32Array.from({ length: rows }, (_, i) => i % 8)),
      });
      // Some entries beyond the codes there are, some decided for good.
      expect(error(softRoundOp, codes(), { most: 7 })).toBeLessThan(tolerance);
      expect(error(softRoundGradOp, { dy: random([rows, width]), ...codes() }, { most: 7 })).toBeLessThan(4 * tolerance);
      for (const sharpness of [2, 7.5, 20]) {
        const standing = (): SoftRoundInputs => {
          const { zeros, ...rest } = codes();
          zeros.dispose();
          return rest;
        };
        expect(error(undecidedOp, standing(), { sharpness })).toBeLessThan(4 * tolerance);
        expect(error(undecidedGradOp, { dy: random([rows]), ...standing() }, { sharpness })).toBeLessThan(4 * tolerance);
      }
    });

    it(`takes one step of Adam on ${rows * width} entries`, () => {
      const [momentum, gradient] = [random([rows, width]), random([rows, width])];
      const variance = tensor(
        Float32Array.from({ length: rows * width }, (_, i) => Math.abs(Math.sin(i))),
        [rows, width],
      );
      const inputs = { gradient, momentum, variance, correction1: tensor([0.19]), correction2: tensor([0.002]), ok: tensor([1]) };
      expect(error(adamOp, inputs, { beta1: 0.9, beta2: 0.999, eps: 1e-8, overwrite: false })).toBeLessThan(tolerance);
    });

    it(`adds low-rank products of ${width} columns to ${rows} rows, and their gradients`, () => {
      for (const [out, rank] of [
        [1, 1],
        [7, 3],
        [300, 8],
        [260, 13],
      ] as const) {
        const factors = (): { x: Tensor; a: Tensor; b: Tensor } => ({
          x: lowRank([rows, width]),
          a: lowRank([rank, width]),
          b: lowRank([out, rank]),
        });
        expect(error(loraOp, { ...factors(), base: lowRank([rows, out]) }, { scale: 0.7, unread: false })).toBeLessThan(4 * tolerance);
        const backward = (): ReturnType<typeof factors> & { dy: Tensor; inner: Tensor } => ({
          ...factors(),
          dy: lowRank([rows, out]),
          inner: lowRank([rows, rank]),
        });
        expect(error(loraGradOp, backward(), { scale: 0.7 })).toBeLessThan(4 * tolerance);
        const address = createDraw(3, out).at('dropout');
        const dropout = noiseAttributes([rows, width], address, 'mask', { keep: 0.6 });
        expect(error(loraOp, { ...factors(), base: lowRank([rows, out]) }, { scale: 0.7, unread: false, dropout })).toBeLessThan(
          4 * tolerance,
        );
        expect(error(loraGradOp, backward(), { scale: 0.7, dropout })).toBeLessThan(4 * tolerance);
        for (const drops of [{}, { dropout }]) {
          const weight = (): Tensor => lowRank([out, width]);
          const forward = { scale: 0.7, unread: false, ...drops };
          expect(error(loraProductOp, { ...factors(), weight: weight() }, forward)).toBeLessThan(4 * tolerance);
          expect(error(loraProductGradOp, { ...backward(), weight: weight() }, { scale: 0.7, ...drops })).toBeLessThan(4 * tolerance);
        }
      }
    });

    it(`scores ${rows} rows over a vocabulary of ${width + 1} and their gradients`, () => {
      const targets = (): Tensor =>
        tensor(
          Int32Array.from({ length: rows }, (_, i) => (i % 3 === 1 ? -100 : (i * 7) % width)),
          [rows],
          'int32',
        );
      expect(error(crossEntropyOp, { logits: random([rows, width + 1], 8), targets: targets() }, {})).toBeLessThan(tolerance);
      const logits = random([rows, width + 1], 3);
      const [, logSumExp] = crossEntropyOp.reference({ logits, targets: targets() }, {});
      const inputs = { dloss: random([rows]), logits, targets: targets(), logSumExp: logSumExp! };
      expect(error(crossEntropyGradOp, inputs, { overwrite: false })).toBeLessThan(tolerance);
    });

    it(`adds a product to a sum of ${width} by ${rows}, ${Math.min(rows, 300)} terms`, () => {
      for (const terms of [Math.min(rows, 300), 1, 0]) {
        const inputs = { sum: random([width, rows]), a: random([terms, width]), b: random([terms, rows]) };
        expect(error(addProductOp, inputs, { overwrite: false })).toBeLessThan(tolerance);
      }
    });
  }

  it('adds low-rank products to those of more rows than are packed at a time, and computes the inner one alone', () => {
    const [rows, width, out, rank] = [1500, 9, 11, 3];
    const make = (): { x: Tensor; a: Tensor; b: Tensor; weight: Tensor } => ({
      x: tall([rows, width]),
      a: tall([rank, width]),
      b: tall([out, rank]),
      weight: tall([out, width]),
    });
    expect(error(loraProductOp, make(), { scale: 0.7, unread: false })).toBeLessThan(tolerance);
    const backward = { ...make(), dy: tall([rows, out]), inner: tall([rows, rank]) };
    expect(error(loraProductGradOp, backward, { scale: 0.7 })).toBeLessThan(4 * tolerance);
    const inputs = make();
    const [read, unread] = [false, true].map((own) => runOp(loraProductOp, inputs, { scale: 0.7, unread: own })) as [Tensor[], Tensor[]];
    expect(unread[1]!.dataSync()).toEqual(read[1]!.dataSync());
    dispose([inputs, read, unread]);
  });

  it('writes over an input where it may, with the bits that it gives beside it', () => {
    const logits = random([65, 1001], 3);
    const targets = tensor(
      Int32Array.from({ length: 65 }, (_, i) => (i % 3 === 1 ? -100 : (i * 7) % 1001)),
      [65],
      'int32',
    );
    const [, logSumExp] = crossEntropyOp.reference({ logits, targets }, {}) as [Tensor, Tensor];
    const cases = [
      [crossEntropyGradOp, { dloss: random([65]), logits, targets, logSumExp }, 'logits'],
      [addProductOp, { sum: random([65, 33]), a: random([300, 65]), b: random([300, 33]) }, 'sum'],
    ] as unknown as [Op<Record<string, Tensor>, { overwrite: boolean }>, Record<string, Tensor>, string][];
    for (const [op, inputs, over] of cases) {
      const before = memory().numDataBuffers;
      const given = inputs[over]!.dataSync().slice();
      const [beside] = runOp(op, inputs, { overwrite: false }) as [Tensor];
      expect(distance(inputs[over]!.dataSync(), given)).toBe(0);
      const [result] = runOp(op, inputs, { overwrite: true }) as [Tensor];
      expect(result.dataId).toBe(inputs[over]!.dataId);
      expect(distance(result.dataSync(), beside.dataSync())).toBe(0);
      dispose([beside, result]);
      expect(memory().numDataBuffers).toBe(before);
      dispose(inputs);
    }
  });

  for (const [rows, heads, kvHeads, d] of [
    [1, 1, 1, 2],
    [7, 3, 1, 14],
    [65, 2, 2, 64],
    [1000, 1, 3, 2],
  ] as const) {
    it(`rotates ${heads} and ${kvHeads} heads of ${d} entries in ${rows} rows, there and back`, () => {
      for (const inverse of [false, true])
        expect(
          error(
            ropeOp,
            { q: random([rows, heads, d]), k: random([rows, kvHeads, d]), cos: random([rows, d / 2]), sin: random([rows, d / 2]) },
            { inverse },
          ),
        ).toBeLessThan(tolerance);
    });
  }
});

/** int32 bounds of `time` queries over `keys` keys. */
const bounds = (batch: number, time: number, make: (i: number, b: number) => number): Tensor =>
  tensor(
    Int32Array.from({ length: batch * time }, (_, i) => make(i % time, Math.floor(i / time))),
    [batch, time],
    'int32',
  );

const masks: Readonly<
  Record<string, readonly [from: (i: number, b: number) => number, to: (i: number, b: number, keys: number, time: number) => number]>
> = {
  bidirectional: [() => 0, (_, __, keys) => keys],
  causal: [() => 0, (i, _, keys, time) => Math.max(0, i + 1 + keys - time)],
  'sliding and causal': [(i) => Math.max(0, i - 5), (i, _, keys) => Math.min(keys, i + 1)],
  'padded, with rows that see nothing': [(i) => (i % 4 === 3 ? 2 : 0), (i, b, keys) => (i % 4 === 3 ? 2 : Math.min(keys, 3 + b))],
};

function expectAttention(inputs: () => AttentionInputs, attributes: AttentionAttributes): void {
  expect(error(attentionOp, inputs(), attributes)).toBeLessThan(4 * tolerance);
  const forward = inputs();
  const [y, logSumExp] = attentionOp.reference(forward, attributes);
  const backward = { ...forward, dy: random([...forward.q.shape]), y: y!, logSumExp: logSumExp! };
  expect(error(attentionGradOp, backward, attributes)).toBeLessThan(8 * tolerance);
}

describe.each(Object.entries(wasmBuilds))('Attention equals its reference (%s)', (_, options) => {
  beforeAll(() => useBuild(options));

  const shapes = [
    [1, 1, 1, 1, 1, 1],
    [2, 7, 7, 4, 2, 5],
    [1, 130, 130, 3, 1, 16],
    [2, 65, 200, 2, 2, 64],
    [1, 3, 300, 6, 2, 24],
    [9, 20, 20, 4, 2, 8],
  ] as const;
  for (const [batch, time, keys, heads, kvHeads, d] of shapes) {
    for (const [name, [from, to]] of Object.entries(masks)) {
      it(`${name}: ${batch} x ${time} queries, ${keys} keys, ${heads} heads on ${kvHeads} of ${d} entries`, () => {
        const inputs = (): AttentionInputs => ({
          q: random([batch, time, heads, d], 2),
          k: random([batch, keys, kvHeads, d], 2),
          v: random([batch, keys, kvHeads, d]),
          from: bounds(batch, time, from),
          to: bounds(batch, time, (i, b) => to(i, b, keys, time)),
        });
        expectAttention(inputs, { scale: 1 / Math.sqrt(d) });
      });
    }
  }

  // As a token is made: all that came before it, what a window of a layer leaves, or nothing.
  it.each([
    [5, 300, 6, 2, 24, 0, 300],
    [1, 140, 5, 1, 7, 0, 140],
    [2, 65, 9, 3, 64, 40, 65],
    [1, 400, 2, 2, 16, 200, 390],
    [2, 9, 4, 2, 8, 3, 3],
  ])('%i x one query, %i keys, %i heads on %i of %i entries, from key %i to %i', (batch, keys, heads, kvHeads, d, from, to) => {
    const inputs = (): AttentionInputs => ({
      q: random([batch, 1, heads, d], 2),
      k: random([batch, keys, kvHeads, d], 2),
      v: random([batch, keys, kvHeads, d]),
      from: bounds(batch, 1, () => from),
      to: bounds(batch, 1, () => to),
    });
    expectAttention(inputs, { scale: 1 / Math.sqrt(d) });
  });

  // A row sees its own document behind keys in front of all: in one block with them, right behind, and blocks away.
  it.each([
    [1, 130, 130, 3, 1, 16, 5, 60],
    [1, 40, 300, 2, 2, 5, 150, 290],
    [2, 7, 420, 4, 2, 24, 3, 400],
    [1, 9, 30, 1, 1, 8, 12, 4],
    [1, 5, 9, 2, 1, 8, 20, 2],
    [3, 1, 420, 6, 2, 24, 3, 400],
    [1, 1, 300, 5, 1, 5, 150, 290],
    [1, 1, 9, 2, 1, 8, 20, 2],
  ])(
    '%i x %i queries, %i keys, %i heads on %i of %i entries, the first %i keys always seen',
    (batch, time, keys, heads, kvHeads, d, always, own) => {
      const inputs = (): AttentionInputs => ({
        q: random([batch, time, heads, d], 2),
        k: random([batch, keys, kvHeads, d], 2),
        v: random([batch, keys, kvHeads, d]),
        // Every fourth query sees nothing, and every fifth not all that is always seen.
        from: bounds(batch, time, (i) => (i % 4 === 3 ? own : Math.min(own, i % 5 === 4 ? 1 : own + (i % 3)))),
        to: bounds(batch, time, (i) => (i % 4 === 3 ? own : i % 5 === 4 ? 2 : Math.min(keys, own + 1 + i))),
      });
      expectAttention(inputs, { scale: 1 / Math.sqrt(d), always });
    },
  );
});
