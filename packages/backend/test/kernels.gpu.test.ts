import { init } from '@niwaki/backend';
import {
  adamOp,
  addProductOp,
  addRmsNormOp,
  allFinite,
  allFiniteOp,
  choose,
  commitUpdateOp,
  crossEntropyGradOp,
  crossEntropyOp,
  geluGradOp,
  geluOp,
  layerNormGradOp,
  layerNormOp,
  loraGradOp,
  dispose,
  loraOp,
  loraProductGradOp,
  loraProductOp,
  mul,
  noiseAttributes,
  createDraw,
  putRowsOp,
  rmsNormGradOp,
  rmsNormOp,
  ropeOp,
  runOp,
  scalar,
  softRoundGradOp,
  softRoundOp,
  sumSquares,
  sumSquaresOp,
  swigluGradOp,
  swigluOp,
  tensor,
  tensor1d,
  undecidedGradOp,
  undecidedOp,
  zeros,
  type Tensor,
} from '@niwaki/tensor';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { beforeAll, describe, expect, test } from 'vitest';
import { packedFixture } from './packed-fixture.ts';
import { expectParity, floats, ints, onGpu, overwriting, type Host } from './parity.ts';

const missing = await gpuMissing();
const sizes = [1, 7, 64, 65];

const positive = (groups: number): Host => ({
  shape: [groups],
  values: Float32Array.from({ length: groups }, (_, i) => 0.4 + 0.1 * (i % 5)),
});
const whole = (groups: number): Host => ({ shape: [groups], values: Float32Array.from({ length: groups }, (_, i) => i % 8) });

describe.skipIf(missing)('WebGPU kernels equal their references', () => {
  beforeAll(async () => {
    await init({ device: 'webgpu', software: true });
  });

  test.each(sizes.flatMap((rows) => [1, 65, 1000].map((width) => [rows, width] as const)))(
    'rmsNorm of %i rows of %i',
    async (rows, width) => {
      const [x, weight, dy] = [floats([rows, width]), floats([width], 2), floats([rows, width], 3)];
      await expectParity(rmsNormOp as never, { x, weight }, { eps: 1e-5 });
      await expectParity(addRmsNormOp as never, { x, delta: dy, weight }, { eps: 1e-5 });
      // Sums over up to 65 rows, each term good to a few units in the last place.
      await expectParity(rmsNormGradOp as never, { dy, x, weight }, { eps: 1e-5, weightGradient: true }, 1e-5);
      await expectParity(
        rmsNormGradOp as never,
        { dy, x, weight, beside: floats([rows, width], 4) },
        { eps: 1e-5, weightGradient: true },
        1e-5,
      );
      const [dx, ...rest] = await onGpu(rmsNormGradOp as never, { dy, x, weight }, { eps: 1e-5, weightGradient: false });
      expect(dx!.shape).toEqual([rows, width]);
      expect(rest).toEqual([]);
    },
  );

  test.each(sizes.flatMap((rows) => [1, 65, 1000].map((width) => [rows, width] as const)))(
    'layerNorm of %i rows of %i',
    async (rows, width) => {
      const [x, weight, bias, dy] = [floats([rows, width]), floats([width], 2), floats([width], 4), floats([rows, width], 3)];
      await expectParity(layerNormOp as never, { x, weight, bias }, { eps: 1e-2 });
      await expectParity(layerNormGradOp as never, { dy, x, weight }, { eps: 1e-2, weightGradient: true }, 1e-5);
      const [dx, ...rest] = await onGpu(layerNormGradOp as never, { dy, x, weight }, { eps: 1e-2, weightGradient: false });
      expect(dx!.shape).toEqual([rows, width]);
      expect(rest).toEqual([]);
    },
  );

  test.each(([1, 7, 64, 65, 1000] as const).flatMap((n) => (['erf', 'tanh'] as const).map((form) => [n, form] as const)))(
    'gelu of %i entries by %s',
    async (n, form) => {
      const [x, dy] = [floats([n], 1, 6), floats([n], 2)];
      await expectParity(geluOp as never, { x }, { form });
      await expectParity(geluGradOp as never, { dy, x }, { form });
    },
  );

  test('gelu stays finite where the exponential would not', async () => {
    const x = { shape: [4], values: Float32Array.of(-200, 200, -20, 20) };
    for (const form of ['erf', 'tanh']) {
      const [y] = await onGpu(geluOp as never, { x }, { form });
      expect([...y!.values].map(Math.round)).toEqual([-0, 200, -0, 20]);
    }
  });

  test.each([
    [1, 1, 1, 2],
    [7, 3, 1, 8],
    [65, 9, 3, 64],
    [1000, 1, 2, 6],
  ])('rope of %i rows, %i heads and %i of %i', async (rows, heads, kvHeads, d) => {
    const q = floats([rows, heads, d]);
    const k = floats([rows, kvHeads, d], 4);
    const cos = floats([rows, d / 2], 2);
    const sin = floats([rows, d / 2], 3);
    for (const inverse of [false, true]) await expectParity(ropeOp as never, { q, k, cos, sin }, { inverse });
  });

  test.each([
    [1, 1, 1, 1],
    [7, 65, 7, 3],
    [65, 64, 1000, 8],
    [64, 1000, 65, 9],
    [3, 33, 65, 70],
  ])('LoRA of %i rows, %i to %i, rank %i', async (rows, width, out, rank) => {
    const [base, dy] = [floats([rows, out]), floats([rows, out], 5)];
    const [x, a, b] = [floats([rows, width], 2), floats([rank, width], 3), floats([out, rank], 4)];
    const weight = floats([out, width], 6);
    for (const dropout of [undefined, noiseAttributes([rows, width], createDraw(1, rank).at('dropout'), 'mask', { keep: 0.6 })]) {
      const attributes = { scale: 0.7, unread: false, dropout };
      const [, inner] = await expectParity(loraOp as never, { base, x, a, b }, attributes, 2e-5);
      await expectParity(loraGradOp as never, { dy, x, a, b, inner: inner! }, attributes, 2e-5);
      await expectParity(loraProductOp as never, { x, a, b, weight }, attributes, 2e-5);
      await expectParity(loraProductGradOp as never, { dy, x, a, b, inner: inner!, weight }, attributes, 2e-5);
    }
  });

  test('LoRA over a packed matrix, and of a result that nobody reads', async () => {
    const { shape: packed, parts } = packedFixture('codebook4', 65, 192);
    const [x, a, b, dy] = [floats([7, 192], 2), floats([3, 192], 3), floats([65, 3], 4), floats([7, 65], 5)];
    const [, inner] = await expectParity(loraProductOp as never, { ...parts, x, a, b }, { scale: 0.7, unread: false, packed }, 2e-5);
    await expectParity(loraProductGradOp as never, { ...parts, dy, x, a, b, inner: inner! }, { scale: 0.7, packed }, 2e-5);
    const read = await onGpu(loraProductOp as never, { ...parts, x, a, b }, { scale: 0.7, unread: false, packed });
    const inputs = Object.entries({ ...parts, x, a, b }).map(([name, { shape, values }]) => [name, tensor(values, [...shape])] as const);
    const outputs = runOp(loraProductOp, Object.fromEntries(inputs) as never, { scale: 0.7, unread: true, packed });
    expect(outputs[0]!.shape).toEqual([7, 65]);
    expect(await outputs[1]!.data()).toEqual(read[1]!.values);
    dispose([...outputs, ...inputs.map(([, made]) => made)]);
  });

  test.each([
    [1, 1],
    [65, 7],
    [7, 65],
    [3, 1000],
  ])('soft rounding of %i groups of %i', async (groups, size) => {
    const standing = { w: floats([groups, size], 1, 4), logits: floats([groups, size], 2, 3), scales: positive(groups) };
    const codes = { ...standing, zeros: whole(groups) };
    await expectParity(softRoundOp as never, codes, { most: 7 });
    await expectParity(softRoundGradOp as never, { dy: floats([groups, size], 3), ...codes }, { most: 7 }, 1e-5);
    for (const sharpness of [2, 20]) {
      await expectParity(undecidedOp as never, standing, { sharpness }, 1e-5);
      await expectParity(undecidedGradOp as never, { dy: floats([groups], 4), ...standing }, { sharpness }, 2e-5);
    }
  });

  test.each([[1], [7], [64], [65], [1000]])('swiglu of %i entries', async (n) => {
    const [gate, up, dy] = [floats([n], 1, 8), floats([n], 2), floats([n], 3)];
    await expectParity(swigluOp as never, { gate, up }, {});
    await expectParity(swigluGradOp as never, { dy, gate, up }, {});
  });

  test('swiglu stays finite where the exponential would not', async () => {
    const gate = { shape: [4], values: Float32Array.of(-200, 200, -90, 90) };
    const up = { shape: [4], values: Float32Array.of(1, 1, 1, 1) };
    const [y] = await onGpu(swigluOp as never, { gate, up }, {});
    expect([...y!.values].map((v) => Math.round(v))).toEqual([-0, 200, -0, 90]);
  });

  test.each(sizes.flatMap((rows) => [2, 7, 65, 1000].map((vocabulary) => [rows, vocabulary] as const)))(
    'crossEntropy of %i rows over %i ids, every fifth row ignored',
    async (rows, vocabulary) => {
      const logits = floats([rows, vocabulary], 1, 12);
      const targets = ints([rows], (i) => (i % 5 === 4 ? -100 : (i * 31) % vocabulary));
      const [, logSumExp] = await expectParity(crossEntropyOp as never, { logits, targets }, {});
      const dloss = floats([rows], 2);
      const inputs = { dloss, logits, targets, logSumExp: logSumExp! };
      const [apart] = await expectParity(crossEntropyGradOp as never, inputs, { overwrite: false }, 1e-5);
      const over = await overwriting(crossEntropyGradOp as never, inputs, ['logits']);
      expect(over.results[0]!.values).toEqual(apart!.values);
      expect(over.inPlace).toBe(true);
    },
  );

  test.each([
    [1, 1, 1],
    [7, 65, 3],
    [64, 1000, 65],
    [1001, 64, 7],
    [5, 65, 0],
  ])('adds a product to a sum of %i by %i, %i terms', async (rows, columns, terms) => {
    const inputs = { sum: floats([rows, columns]), a: floats([terms, rows], 2), b: floats([terms, columns], 3) };
    const [apart] = await expectParity(addProductOp as never, inputs, { overwrite: false }, 1e-5);
    const over = await overwriting(addProductOp as never, inputs, ['sum']);
    expect(over.results[0]!.values).toEqual(apart!.values);
    expect(over.inPlace).toBe(true);
  });

  test('does not write over what the host is about to read and to remember', async () => {
    const inputs = { sum: floats([2, 3]), a: floats([4, 2], 2), b: floats([4, 3], 3) };
    const [given, a, b] = [inputs.sum, inputs.a, inputs.b].map(({ shape, values }) => tensor(values, [...shape])) as [
      Tensor,
      Tensor,
      Tensor,
    ];
    const sum = mul(given, 2);
    const reading = sum.data();
    const [total] = runOp(addProductOp, { sum, a, b }, { overwrite: true }) as [Tensor];
    const old = await reading;
    expect(old).toEqual(inputs.sum.values.map((value) => 2 * value));
    expect(total.dataId).not.toBe(sum.dataId);
    expect(await total.data()).not.toEqual(old);
    dispose([given, sum, a, b, total]);
  });

  test('does not write over a buffer that another tensor of the same content shares, or over what the host has read', async () => {
    const inputs = { sum: floats([2, 3]), a: floats([4, 2], 2), b: floats([4, 3], 3) };
    const [sum, same, a, b] = [inputs.sum, inputs.sum, inputs.a, inputs.b].map(({ shape, values }) => tensor(values, [...shape])) as [
      Tensor,
      Tensor,
      Tensor,
      Tensor,
    ];
    const [total] = runOp(addProductOp, { sum, a, b }, { overwrite: true }) as [Tensor];
    expect(await same.data()).toEqual(inputs.sum.values);
    const first = await total.data();
    const [next] = runOp(addProductOp, { sum: total, a, b }, { overwrite: true }) as [Tensor];
    expect(await total.data()).toEqual(first);
    expect(await next.data()).not.toEqual(first);
    dispose([sum, same, a, b, total, next]);
  });

  test.each([[1], [7], [64], [65], [1000]])('adam of %i entries', async (n) => {
    const variance = floats([n], 3);
    variance.values.forEach((v, i) => (variance.values[i] = Math.abs(v)));
    const one = (value: number) => ({ shape: [], values: Float32Array.of(value) });
    const inputs = { gradient: floats([n]), momentum: floats([n], 2), variance, correction1: one(0.19), correction2: one(0.002) };
    const options = { beta1: 0.9, beta2: 0.999, eps: 1e-8, overwrite: false };
    const apart = await expectParity(adamOp as never, { ...inputs, ok: one(1) }, options);
    const names = ['gradient', 'momentum', 'variance'];
    const over = await overwriting(adamOp as never, { ...inputs, ok: one(1) }, names, options);
    expect(over).toEqual({ results: apart, inPlace: true });
    inputs.gradient.values[0] = NaN;
    const refused = await overwriting(adamOp as never, { ...inputs, ok: one(0) }, names, options);
    expect(refused.results.slice(1).map(({ values }) => values)).toEqual([inputs.momentum.values, variance.values]);
    const [, momentum, kept] = await onGpu(adamOp as never, { ...inputs, ok: one(0) }, options);
    expect(momentum!.values).toEqual(inputs.momentum.values);
    expect(kept!.values).toEqual(variance.values);
  });

  test.each([[1], [7], [64], [65], [1000]])('commitUpdate of %i entries, and of none where it is refused', async (n) => {
    const inputs = { old: floats([n]), update: floats([n], 2) };
    const factors = { keep: 0.99, scale: -0.3, overwrite: false };
    const gate = (ok: number) => ({ ...inputs, ok: { shape: [], values: Float32Array.of(ok) } });
    const apart = await expectParity(commitUpdateOp as never, gate(1), factors);
    expect(await overwriting(commitUpdateOp as never, gate(1), ['update'], factors)).toEqual({ results: apart, inPlace: true });
    inputs.update.values.fill(NaN);
    const [kept] = await onGpu(commitUpdateOp as never, gate(0), factors);
    expect(kept!.values).toEqual(inputs.old.values);
    expect(await overwriting(commitUpdateOp as never, gate(0), ['update'], factors)).toEqual({ results: [kept], inPlace: true });
  });

  test.each([
    [1, 1, 1, 0, 0],
    [1, 64, 1, 63, 0],
    [2, 65, 7, 50, 8],
    [3, 100, 33, 1, 5],
    // What does not fit changes nothing.
    [2, 65, 7, 59, 0],
    [2, 65, 7, -1, 0],
  ])('putRows into %i of %i: %i from %i on behind %i', async (batch, length, count, at, lead) => {
    const inputs = { target: floats([batch, length, 3, 5]), rows: floats([batch, count, 3, 5], 2), at: ints([1], () => at) };
    const apart = await expectParity(putRowsOp as never, inputs, { lead, overwrite: false }, 0);
    expect(await overwriting(putRowsOp as never, inputs, ['target'], { lead, overwrite: true })).toEqual({ results: apart, inPlace: true });
  });

  test.each([[0], [1], [7], [65], [8193], [70_000]])('sumSquares of %i entries', async (n) => {
    await expectParity(sumSquaresOp as never, { x: floats([n]) }, {}, 1e-5);
  });

  test.each([
    [3, 5],
    [10, 700],
    [31, 3000],
  ])('sumSquares of %i tensors of about %i entries, an empty one among them', async (tensors, n) => {
    const inputs = Object.fromEntries(Array.from({ length: tensors }, (_, i) => [`g${i}`, floats([i === 1 ? 0 : n + i * i], i + 1)]));
    await expectParity(sumSquaresOp as never, inputs, {}, 1e-5);
  });

  test('sumSquares of nothing is 0', async () => {
    const found = sumSquares([]);
    expect(await found.data()).toEqual(Float32Array.of(0));
    found.dispose();
  });

  test.each([[1], [7], [65], [5000], [40_000]])('allFinite finds one bad entry among %i, by its bits', async (n) => {
    for (const bad of [NaN, Infinity, -Infinity]) {
      const x = floats([n], 1, 3e38);
      expect((await onGpu(allFiniteOp as never, { x }, {}))[0]!.values[0]).toBe(1);
      x.values[n - 1] = bad;
      expect((await onGpu(allFiniteOp as never, { x }, {}))[0]!.values[0]).toBe(0);
    }
  });

  test('allFinite of nothing is 1', async () => {
    const x = zeros([0]);
    const finite = allFinite(x);
    expect((await finite.data())[0]).toBe(1);
    x.dispose();
    finite.dispose();
  });

  test('choose keeps the old bits where the step is refused', async () => {
    const next = tensor1d([NaN, 1, Infinity]);
    const old = tensor1d([1e-42, -0, 3]);
    for (const [ok, expected] of [
      [0, [1e-42, -0, 3]],
      [1, [NaN, 1, Infinity]],
    ] as const) {
      const gate = scalar(ok);
      const chosen = choose(gate, next, old);
      expect([...(await chosen.data())]).toEqual([...Float32Array.from(expected)]);
      gate.dispose();
      chosen.dispose();
    }
    next.dispose();
    old.dispose();
  });
});
