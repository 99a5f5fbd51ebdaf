import {
  adamOp,
  add,
  addNoiseOp,
  addProductOp,
  addRmsNormOp,
  addN,
  attentionGradOp,
  attentionOp,
  codedAdamOp,
  commitUpdateOp,
  createDraw,
  crossEntropyGradOp,
  crossEntropyOp,
  geluGradOp,
  geluOp,
  layerNormGradOp,
  layerNormOp,
  loraGradOp,
  loraOp,
  loraProductGradOp,
  loraProductOp,
  mul,
  noiseAttributes,
  packedMatMulOp,
  packedRowsOp,
  rmsNormGradOp,
  rmsNormOp,
  ropeOp,
  runOp,
  softRoundGradOp,
  softRoundOp,
  sum,
  square,
  sumSquaresOp,
  swigluGradOp,
  swigluOp,
  tensor,
  tidy,
  unsortedSegmentSum,
  matMul,
  undecidedGradOp,
  undecidedOp,
  type Op,
  type Tensor,
  type Tensor1D,
} from '@niwaki/tensor';
import { expect, it } from 'vitest';
import { numbers, useBuild } from './wasm-builds.ts';

/** Large enough that every thread takes part, and no side a multiple of a block. */
const [rows, width, heads, kvHeads, d, time] = [601, 333, 6, 2, 40, 301];

/** Everything that is computed by several threads, from inputs that a seed repeats. */
function everything(): Readonly<Record<string, readonly Tensor[]>> {
  const random = numbers(29);
  const run = <I extends { [name: string]: Tensor }, A extends object>(op: Op<I, A>, inputs: I, attributes: A): Tensor[] =>
    runOp(op, inputs, attributes);
  const [x, dy, weight] = [random([rows, width]), random([rows, width]), random([width])];
  const targets = tensor(
    Int32Array.from({ length: rows }, (_, i) => (i * 7) % width),
    [rows],
    'int32',
  );
  const steps = mul(random([rows]), 0.1);
  const codes = { w: x, logits: dy, scales: add(square(steps), 0.3), zeros: steps };
  const [loss, logSumExp] = run(crossEntropyOp, { logits: x, targets }, {}) as [Tensor, Tensor];
  const bounds = (to: (i: number) => number): Tensor =>
    tensor(
      Int32Array.from({ length: 2 * time }, (_, i) => to(i % time)),
      [2, time],
      'int32',
    );
  const sides = {
    q: random([2, time, heads, d]),
    k: random([2, time, kvHeads, d]),
    v: random([2, time, kvHeads, d]),
    from: bounds(() => 0),
    to: bounds((i) => i + 1),
  };
  const [y, total] = run(attentionOp, sides, { scale: 0.2 }) as [Tensor, Tensor];
  const words = (entries: number, each: number): Tensor =>
    tensor(
      new Int32Array(Math.ceil(entries / each)).map((_, i) => Math.imul(i, 0x9e3779b1)),
      undefined,
      'int32',
    );
  const blockScales = random([Math.ceil((rows * width) / 256)]);
  const packed = {
    codes: words(rows * width, 8),
    codebook: random([16]),
    absmax: random([Math.ceil((rows * width) / 64)]),
  };
  const shape = { format: 'codebook4', out: rows, in: width, blockSize: 64 } as const;
  const half = tensor([0.5]);
  const lowRank = { x: random([rows, 901]), a: random([13, 901]), b: random([width, 13]) };
  const inner = random([rows, 13]);
  const matrix = random([width, 901]);
  const dropout = noiseAttributes([rows, 901], createDraw(1, 2).at('dropout'), 'mask', { keep: 0.9 });
  return {
    'a product': [matMul(x, random([width, 500]))],
    'a sum and a product': run(addProductOp, { sum: random([width, 77]), a: x, b: random([rows, 77]) }, { overwrite: false }),
    'a batch of products': [matMul(random([7, 90, 80]), random([7, 80, 70]))],
    'a product with few columns': [matMul(random([3000, width]), random([width, 9]))],
    'a product of one row': [matMul(random([1, 1500]), random([1500, 1501]))],
    sums: [sum(x), sum(x, 0), sum(x, 1)],
    'a sum of several': [addN([x, dy, mul(x, 0.5), mul(dy, 3)])],
    norms: [
      ...run(rmsNormOp, { x, weight }, { eps: 1e-5 }),
      ...run(rmsNormGradOp, { dy, x, weight }, { eps: 1e-5, weightGradient: true }),
      ...run(addRmsNormOp, { x, delta: dy, weight }, { eps: 1e-5 }),
      ...run(rmsNormGradOp, { dy, x, weight, beside: dy }, { eps: 1e-5, weightGradient: true }),
    ],
    'centered norms': [
      ...run(layerNormOp, { x, weight, bias: weight }, { eps: 1e-5 }),
      ...run(layerNormGradOp, { dy, x, weight }, { eps: 1e-5, weightGradient: true }),
    ],
    'noise on top': run(addNoiseOp, { x, factor: half }, noiseAttributes([rows, width], createDraw(1, 2).at('x'), 'gaussian')),
    gelu: [...run(geluOp, { x }, { form: 'erf' }), ...run(geluGradOp, { dy, x }, { form: 'tanh' })],
    gates: [...run(swigluOp, { gate: x, up: dy }, {}), ...run(swigluGradOp, { dy, gate: x, up: dy }, {})],
    'soft rounding': [
      ...run(softRoundOp, codes, { most: 7 }),
      ...run(softRoundGradOp, { dy, ...codes }, { most: 7 }),
      ...run(undecidedOp, codes, { sharpness: 5 }),
      ...run(undecidedGradOp, { ...codes, dy: codes.zeros }, { sharpness: 5 }),
    ],
    rotations: run(
      ropeOp,
      { q: random([rows, heads, d]), k: random([rows, 2, d]), cos: random([rows, d / 2]), sin: random([rows, d / 2]) },
      { inverse: true },
    ),
    losses: [loss, logSumExp, ...run(crossEntropyGradOp, { dloss: loss, logits: x, targets, logSumExp }, { overwrite: false })],
    attention: [y, total, ...run(attentionGradOp, { ...sides, dy: random([2, time, heads, d]), y, logSumExp: total }, { scale: 0.2 })],
    Adam: run(
      adamOp,
      { gradient: dy, momentum: x, variance: square(x), correction1: half, correction2: half, ok: half },
      { beta1: 0.9, beta2: 0.99, eps: 1e-8, overwrite: false },
    ),
    'what ends a step': [
      ...run(commitUpdateOp, { old: x, update: dy, ok: half }, { keep: 0.9, scale: 0.1, overwrite: false }),
      ...run(sumSquaresOp, { x, dy, matrix }, {}),
    ],
    'low-rank products': [
      ...run(loraOp, { base: dy, ...lowRank }, { scale: 2, unread: false }),
      ...run(loraGradOp, { dy, inner, ...lowRank }, { scale: 2 }),
    ],
    'low-rank products under dropout': [
      ...run(loraOp, { base: dy, ...lowRank }, { scale: 2, unread: false, dropout }),
      ...run(loraGradOp, { dy, inner, ...lowRank }, { scale: 2, dropout }),
    ],
    'low-rank products over a base': [
      ...run(loraProductOp, { ...lowRank, weight: matrix }, { scale: 2, unread: false }),
      ...run(loraProductGradOp, { dy, inner, ...lowRank, weight: matrix }, { scale: 2 }),
      ...run(loraProductGradOp, { dy, inner, ...lowRank, weight: matrix }, { scale: 2, dropout }),
    ],
    'packed products': [false, true].flatMap((transposed) =>
      run(packedMatMulOp, { ...packed, x: random([70, transposed ? rows : width]) }, { ...shape, transposed }),
    ),
    'packed rows': run(
      packedRowsOp,
      {
        ...packed,
        ids: tensor(
          Int32Array.from({ length: 900 }, (_, i) => (i * 7) % rows),
          [900],
          'int32',
        ),
      },
      shape,
    ),
    'sums of repeated rows': [unsortedSegmentSum(x, targets as Tensor1D, width)],
    'Adam on 8-bit moments': run(
      codedAdamOp,
      {
        gradient: dy,
        momentumWords: words(rows * width, 4),
        momentumScales: square(blockScales),
        varianceWords: words(rows * width, 4),
        varianceScales: square(blockScales),
        factors: tensor([0.19, 0.002, 1]),
      },
      { beta1: 0.9, beta2: 0.99, eps: 1e-8, blockSize: 256, guard: true, overwrite: false },
    ),
    'packed products of one row': [false, true].flatMap((transposed) =>
      run(packedMatMulOp, { ...packed, x: random([1, transposed ? rows : width]) }, { ...shape, transposed }),
    ),
  };
}

const bitsOf = (tensor: Tensor): Buffer => {
  const { buffer, byteLength } = tensor.dataSync();
  return Buffer.from(buffer, 0, byteLength);
};

it('gives the same bits on one, two and three threads, for everything that threads share', async () => {
  const results: Record<string, Buffer[]>[] = [];
  for (const threads of [1, 2, 3]) {
    await useBuild({ threads });
    // Several times, since who takes which task is a matter of chance.
    for (let i = 0; i < (threads === 1 ? 1 : 4); i++) {
      tidy(() => {
        results.push(Object.fromEntries(Object.entries(everything()).map(([name, tensors]) => [name, tensors.map(bitsOf)])));
      });
    }
  }
  const [first, ...others] = results;
  for (const [name, tensors] of Object.entries(first!)) {
    const different = others.flatMap((other) => tensors.filter((bits, i) => !bits.equals(other[name]![i]!)));
    expect({ name, different: different.length }).toEqual({ name, different: 0 });
  }
});
