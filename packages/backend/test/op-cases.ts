/**
 * One call of every op of ours, small and odd-sized: what `ops-table.gpu.test.ts` runs on every device. A kernel's own test
 * looks at its edges; here an op without a case fails.
 */
import { createDraw, dynamicMap, ggufBlocks, noiseAttributes, packBits, wordsOf, type GgufFormat } from '@niwaki/tensor';
import { packedFixture, stackedFixture } from './packed-fixture.ts';
import { floats, ints, type Host, type Hosts } from './parity.ts';

export interface OpCase {
  readonly inputs: Hosts;
  readonly attributes: object;
  /** Inputs that another case's op gives, by the number of its output. */
  readonly after?: { readonly op: string; readonly outputs: Readonly<Record<string, number>> };
  /** Relative to the larger of 1 and the largest entry of an output; default a few roundings. */
  readonly tolerance?: number;
  /** Outputs of packed bytes, of which one in a few may be its neighbor: a division decides it, which WGSL rounds to a few units. */
  readonly bytes?: readonly number[];
  /** What an output holds means nothing, and may not be there to read: shapes only. */
  readonly unread?: boolean;
}

const [rows, width, out, rank] = [7, 65, 33, 3];
const wave = (shape: readonly number[], seed: number, scale?: number): Host => floats(shape, seed, scale);
const positive = ({ shape, values }: Host): Host => ({ shape, values: Float32Array.from(values, (v) => Math.abs(v) + 0.1) });
const scalar = (value: number): Host => ({ shape: [], values: Float32Array.of(value) });
const vector = (...values: number[]): Host => ({ shape: [values.length], values: Float32Array.from(values) });
const words = (count: number, seed: number): Host => ints([count], (i) => Math.imul(i + seed, 0x9e3779b1));

const address = createDraw(5, 6).at('x');
const [x, dy, weight, bias] = [wave([rows, width], 1), wave([rows, width], 2), wave([width], 3), wave([width], 4)];

const packed = packedFixture('codebook4', out, 192);
const packedX = wave([rows, 192], 5);
const integers = packedFixture('Q4_1' satisfies GgufFormat, out, 3 * ggufBlocks.Q4_1.elements);
const runs = ints([4], (i) => [0, 3, 3, 6][i]!);
const experts = stackedFixture(packed.parts, packed.shape, 3);

const heads = { q: wave([2, 9, 4, 8], 1), k: wave([2, 9, 2, 8], 2), v: wave([2, 9, 2, 8], 3) };
const seen = { from: ints([2, 9], () => 0), to: ints([2, 9], (i) => (i % 9) + 1) };
const turns = { cos: wave([rows, 3], 3), sin: wave([rows, 3], 4) };

const low = { x, a: wave([rank, width], 5), b: wave([out, rank], 6) };
const backward = { dy: wave([rows, out], 7), inner: wave([rows, rank], 8), ...low };
const frozen = wave([out, width], 9);
const targets = ints([rows], (i) => (i === 4 ? -100 : (i * 31) % width));

const moments = { momentum: wave([1000], 2), variance: positive(wave([1000], 3)) };
const factors = { correction1: scalar(0.19), correction2: scalar(0.002), ok: scalar(1) };
const adam = { beta1: 0.9, beta2: 0.999, eps: 1e-8, overwrite: false };
const coded = {
  momentumWords: words(250, 1),
  momentumScales: positive(wave([4], 3)),
  varianceWords: words(250, 5),
  varianceScales: positive(wave([4], 4)),
};

/** Every code of the map once: nothing lies between two of them. */
const codes: Host = { shape: [256], values: dynamicMap({ signed: true }) };

const [n, m, groups] = [2, 4, 37];
const places = wordsOf(
  packBits(
    Array.from({ length: groups * n }, (_, i) => (i % n) * 2 + (i % 2)),
    { bits: 2 },
  ),
);
const group = { words: { shape: [places.length], values: places } };

const soft = {
  w: wave([13, 5], 1, 4),
  logits: wave([13, 5], 2),
  scales: positive(wave([13], 3)),
  zeros: { shape: [13], values: Float32Array.from({ length: 13 }, (_, i) => 3 + (i % 3)) },
};

const norm = { eps: 1e-2, weightGradient: true };
const lora = { scale: 0.7, unread: false };

/** By kernel name. */
export const opCases: Readonly<Record<string, OpCase>> = {
  NiwakiAdam: { inputs: { gradient: wave([1000], 1), ...moments, ...factors }, attributes: adam },
  NiwakiAddNoise: { inputs: { x, factor: scalar(0.3) }, attributes: noiseAttributes([rows, width], address, 'gaussian'), tolerance: 2e-5 },
  NiwakiAddProduct: { inputs: { sum: wave([out, width], 1), a: wave([rows, out], 2), b: x }, attributes: { overwrite: false } },
  NiwakiAddRmsNorm: { inputs: { x, delta: dy, weight }, attributes: { eps: 1e-5 } },
  NiwakiAllFinite: { inputs: { x }, attributes: {} },
  NiwakiAttention: { inputs: { ...heads, ...seen }, attributes: { scale: 0.4 }, tolerance: 1e-5 },
  NiwakiAttentionGrad: {
    inputs: { ...heads, ...seen, dy: wave([2, 9, 4, 8], 4) },
    after: { op: 'NiwakiAttention', outputs: { y: 0, logSumExp: 1 } },
    attributes: { scale: 0.4 },
    tolerance: 2e-5,
  },
  NiwakiChoose: { inputs: { ok: scalar(0), next: x, old: dy }, attributes: {}, tolerance: 0 },
  NiwakiCodedAdam: {
    inputs: { gradient: wave([1000], 1), ...coded, factors: vector(0.19, 0.002, 1) },
    attributes: { ...adam, blockSize: 256, guard: true },
    tolerance: 2e-5,
    bytes: [1, 3],
  },
  NiwakiCommitUpdate: { inputs: { old: x, update: dy, ok: scalar(1) }, attributes: { keep: 0.9, scale: -0.3, overwrite: false } },
  NiwakiCountingSort: { inputs: { keys: ints([65], (i) => (i * 7) % 9) }, attributes: { count: 8 }, tolerance: 0 },
  NiwakiCrossEntropy: { inputs: { logits: x, targets }, attributes: {} },
  NiwakiCrossEntropyGrad: {
    inputs: { dloss: wave([rows], 2), logits: x, targets },
    after: { op: 'NiwakiCrossEntropy', outputs: { logSumExp: 1 } },
    attributes: { overwrite: false },
  },
  NiwakiCutWords: { inputs: { words: words(300, 3) }, attributes: { from: 7, count: 65 }, tolerance: 0 },
  NiwakiDequantizeBlocks: {
    inputs: { words: words(250, 1), scales: positive(wave([4], 3)) },
    attributes: { signed: true, blockSize: 256, length: 1000 },
  },
  NiwakiExpandGroups: { inputs: { ...group, values: wave([groups * n], 1) }, attributes: { n, m, groups }, tolerance: 0 },
  NiwakiGelu: { inputs: { x: wave([1000], 1, 6) }, attributes: { form: 'erf' } },
  NiwakiGeluGrad: { inputs: { x: wave([1000], 1, 6), dy: wave([1000], 2) }, attributes: { form: 'tanh' } },
  NiwakiGroupedMatMul: { inputs: { x, w: wave([3, out, width], 2), runs }, attributes: { transposed: false }, tolerance: 1e-5 },
  NiwakiGroupedMatMulGrad: { inputs: { dy: wave([rows, out], 3), x, runs }, attributes: {}, tolerance: 1e-5 },
  NiwakiIntegerMatMul: {
    inputs: { x: wave([1, integers.shape.in], 1), ...integers.parts },
    attributes: { ...integers.shape, activations: 'int8' },
    tolerance: 3e-6,
  },
  NiwakiJoinWords: { inputs: { words0: words(65, 1), words1: words(7, 9) }, attributes: { parts: 2 }, tolerance: 0 },
  NiwakiLayerNorm: { inputs: { x, weight, bias }, attributes: { eps: 1e-2 } },
  NiwakiLayerNormGrad: { inputs: { dy, x, weight }, attributes: norm, tolerance: 1e-5 },
  NiwakiLora: { inputs: { base: wave([rows, out], 1), ...low }, attributes: lora, tolerance: 2e-5 },
  NiwakiLoraGrad: { inputs: backward, attributes: { scale: 0.7 }, tolerance: 2e-5 },
  NiwakiLoraProduct: { inputs: { ...low, weight: frozen }, attributes: lora, tolerance: 2e-5 },
  NiwakiLoraProductGrad: { inputs: { ...backward, weight: frozen }, attributes: { scale: 0.7 }, tolerance: 2e-5 },
  NiwakiNoise: { inputs: {}, attributes: noiseAttributes([1000], address, 'uniform'), tolerance: 0 },
  NiwakiPackedGroupedMatMul: {
    inputs: { x: packedX, runs, ...experts },
    attributes: { ...packed.shape, transposed: false },
    tolerance: 1e-5,
  },
  NiwakiPackedMatMul: { inputs: { x: packedX, ...packed.parts }, attributes: { ...packed.shape, transposed: false }, tolerance: 1e-5 },
  NiwakiPackedRows: { inputs: { ids: ints([5], (i) => (i * 7) % out), ...packed.parts }, attributes: packed.shape },
  NiwakiPickGroups: { inputs: { ...group, dense: wave([groups * m], 1) }, attributes: { n, m, groups }, tolerance: 0 },
  NiwakiPutRows: {
    inputs: { target: wave([2, 9, 4, 8], 1), rows: wave([2, 3, 4, 8], 2), at: ints([1], () => 3) },
    attributes: { lead: 1, overwrite: false },
    tolerance: 0,
  },
  NiwakiQuantizeBlocks: { inputs: { x: codes }, attributes: { signed: true, blockSize: 256, guard: false }, tolerance: 0 },
  NiwakiRmsNorm: { inputs: { x, weight }, attributes: { eps: 1e-5 } },
  NiwakiRmsNormGrad: { inputs: { dy, x, weight }, attributes: norm, tolerance: 1e-5 },
  NiwakiRope: { inputs: { q: wave([rows, 3, 6], 1), k: wave([rows, 2, 6], 2), ...turns }, attributes: { inverse: true } },
  NiwakiSoftRound: { inputs: soft, attributes: { most: 7 }, tolerance: 1e-5 },
  NiwakiSoftRoundGrad: { inputs: { ...soft, dy: wave([13, 5], 4) }, attributes: { most: 7 }, tolerance: 1e-5 },
  NiwakiSumSquares: { inputs: { a: x, b: weight }, attributes: {} },
  NiwakiSwiglu: { inputs: { gate: x, up: dy }, attributes: {} },
  NiwakiSwigluGrad: { inputs: { dy, gate: x, up: wave([rows, width], 5) }, attributes: {} },
  NiwakiUndecided: { inputs: { w: soft.w, logits: soft.logits, scales: soft.scales }, attributes: { sharpness: 5 }, tolerance: 1e-5 },
  NiwakiUndecidedGrad: {
    inputs: { w: soft.w, logits: soft.logits, scales: soft.scales, dy: wave([13], 5) },
    attributes: { sharpness: 5 },
    tolerance: 2e-5,
  },
  NiwakiUnpackFields: { inputs: { words: words(40, 2) }, attributes: { bits: 3, count: 400 }, tolerance: 0 },
  NiwakiUnwritten: { inputs: {}, attributes: { shape: [3, 5] }, unread: true },
  NiwakiUpdateGroups: {
    inputs: { codes: words(17, 1), scales: positive(wave([5], 3, 0.01)), zeros: words(2, 5), update: wave([65], 2, 0.3) },
    attributes: { length: 65, groupSize: 16, shrink: 0.75, stochastic: false, seedLow: 7, seedHigh: 1, step: 3, id: 9, sample: 2 },
    tolerance: 1e-5,
    bytes: [0, 2],
  },
};
