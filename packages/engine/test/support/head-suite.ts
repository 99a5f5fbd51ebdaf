import { afterEach, beforeEach, expect, it } from 'vitest';
import {
  add,
  addProductOp,
  cast,
  crossEntropyGradOp,
  crossEntropyOp,
  denseParameter,
  exp,
  floatToHalf,
  log,
  mean,
  memory,
  mul,
  openMemoryLedger,
  square,
  sub,
  sum,
  tensor,
  tensor1d,
  type Parameter,
  type Tensor1D,
} from '@niwaki/tensor';
import {
  affine,
  codebook4,
  denseWeight,
  disposeWeight,
  encodeAffine,
  encodeCodebook4,
  encodeGgufBlocks,
  ggufBlock,
  type Weight,
} from '@niwaki/weights';
import { blockwiseBackprop, causalLM, disposeBatch, type LanguageBatch, type Objective } from '@niwaki/engine';
import { launchesOf, totalOf } from '../../../testing/src/count-launches.ts';
import { apart, collect, type Collected } from './collect.ts';
import { headModel } from './head-model.ts';

/** Sums of up to 1001 terms in f32, one after the other on WebGPU, against f64. */
const tolerance = 5e-6;

/** One row's loss and its slope along the logits. */
type RowLoss = (logits: Float64Array, target: number) => { readonly loss: number; readonly slope: Float64Array };

const softmaxOf = (logits: Float64Array): { total: number; p: Float64Array } => {
  const peak = logits.reduce((a, b) => Math.max(a, b));
  const total = peak + Math.log(logits.reduce((s, l) => s + Math.exp(l - peak), 0));
  return { total, p: logits.map((l) => Math.exp(l - total)) };
};

const crossEntropyRow: RowLoss = (logits, target) => {
  if (target < 0) return { loss: 0, slope: new Float64Array(logits.length) };
  const { total, p } = softmaxOf(logits);
  const loss = total - logits[target]!;
  p[target]! -= 1;
  return { loss, slope: p };
};

const scaled = ({ loss, slope }: ReturnType<RowLoss>, by: number): ReturnType<RowLoss> => ({
  loss: loss * by,
  slope: slope.map((s) => s * by),
});

const [smoothing, penalty] = [0.1, 0.05];

const smoothedRow: RowLoss = (logits, target) => {
  const hard = scaled(crossEntropyRow(logits, target), 1 - smoothing);
  const { total, p } = softmaxOf(logits);
  const n = logits.length;
  const average = logits.reduce((s, l) => s + l, 0) / n;
  const squares = logits.reduce((s, l) => s + l * l, 0) / n;
  return {
    loss: hard.loss + smoothing * (total - average) + penalty * squares,
    slope: hard.slope.map((s, i) => s + smoothing * (p[i]! - 1 / n) + (penalty * 2 * logits[i]!) / n),
  };
};

const base = causalLM();

/** Objectives that say more than a mean, and what they are in f64. */
const objectives: readonly (readonly [name: string, objective: Objective, row: RowLoss])[] = [
  ['cross-entropy', base, crossEntropyRow],
  [
    'cross-entropy with a weight for each row',
    { ...base, score: (outputs, target) => mul(base.score(outputs, target), add(1, mul(cast(target, 'float32'), 0.01))) as Tensor1D },
    (logits, target) => scaled(crossEntropyRow(logits, target), 1 + 0.01 * target),
  ],
  [
    // What else reads the logits has saved them for its own gradient, which comes after that of the cross-entropy.
    'smoothed labels and a penalty on large logits',
    {
      ...base,
      score: (outputs, target) => {
        const logits = outputs['logits']!;
        const soft = sub(log(sum(exp(logits), 1)), mean(logits, 1));
        const rest = add(mul(soft, smoothing), mul(mean(square(logits), 1), penalty));
        return add(rest, mul(base.score(outputs, target), 1 - smoothing)) as Tensor1D;
      },
    },
    smoothedRow,
  ],
];

/** Entries in (-scale, scale) without a pattern, the same for every run. */
function numbers(count: number, scale: number, seed: number): Float32Array {
  let state = Math.imul(seed, 2654435761) >>> 0;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state / 2 ** 31 - 1) * scale;
  });
}

/** All rows but every ninth; every fifth target of the others is none. */
function batchOf(rows: number, vocabulary: number): LanguageBatch {
  const index = Array.from({ length: rows }, (_, i) => i).filter((i) => i % 9 !== 8);
  const targets = index.map((i) => (i % 5 === 4 ? -100 : (i * 331) % vocabulary));
  return { targetRows: tensor1d(index, 'int32'), targets: tensor1d(targets, 'int32') } as unknown as LanguageBatch;
}

export interface Given {
  readonly hidden: Parameter;
  readonly weight: Weight;
  readonly batch: LanguageBatch;
}

/** Runs a function over a head of its own; nothing of it stays. */
export async function withHead<T>(
  { rows, make }: { rows: number; make: () => Promise<Weight> | Weight },
  use: (given: Given & { run(options?: { objective?: Objective; chunkRows?: number }): Promise<Collected> }) => Promise<T>,
): Promise<T> {
  const weight = await make();
  const [vocabulary, width] = weight.shape;
  const value = tensor(numbers(rows * width, 1, 3), [rows, width]);
  const hidden = denseParameter('hidden', value, { role: 'matrix', trainable: true });
  const batch = batchOf(rows, vocabulary);
  const model = await headModel(hidden, weight);
  const wrt = [hidden, ...Object.values(weight.parts).filter(({ trainable }) => trainable)];
  try {
    return await use({
      hidden,
      weight,
      batch,
      run: ({ objective = base, chunkRows = 16 } = {}) =>
        collect(blockwiseBackprop({ chunkBytes: 4 * vocabulary * chunkRows }), model, batch, { objective, wrt }),
    });
  } finally {
    disposeBatch(batch);
    disposeWeight(weight);
    hidden.dispose();
    model.dispose();
  }
}

/** The whole head at once, in f64. */
async function expected({ hidden, weight, batch }: Given, row: RowLoss): Promise<Collected> {
  const [vocabulary, width] = weight.shape;
  const matrix = weight.dense();
  const [h, w, index, targets] = await Promise.all([hidden.read(), matrix, batch.targetRows, batch.targets].map((value) => value.data()));
  matrix.dispose();
  const [dh, dw] = [new Float64Array(h!.length), new Float64Array(w!.length)];
  const scale = 1 / index!.length;
  let loss = 0;
  index!.forEach((at, i) => {
    const x = h!.subarray(at * width, (at + 1) * width);
    const logits = Float64Array.from({ length: vocabulary }, (_, v) => {
      let dot = 0;
      for (let c = 0; c < width; c++) dot += x[c]! * w![v * width + c]!;
      return dot;
    });
    const { loss: own, slope } = row(logits, targets![i]!);
    loss += scale * own;
    for (let v = 0; v < vocabulary; v++) {
      const s = scale * slope[v]!;
      for (let c = 0; c < width; c++) {
        dh[at * width + c]! += s * w![v * width + c]!;
        dw[v * width + c]! += s * x[c]!;
      }
    }
  });
  const gradients = new Map([
    ['hidden', Float32Array.from(dh)],
    ['head.weight', Float32Array.from(dw)],
  ]);
  return { loss, gradients, order: [] };
}

export const denseHead = (vocabulary: number, width: number, trainable = true): Weight =>
  denseWeight(denseParameter('head.weight', tensor(numbers(vocabulary * width, 0.5, 5), [vocabulary, width]), { role: 'head', trainable }));

/** Heads that are stored packed, [1001, 256]. */
const packedHeads: Readonly<Record<string, () => Promise<Weight> | Weight>> = {
  'GGUF Q4_1': () =>
    encoded((shape, rows) => encodeGgufBlocks('head', shape, rows, 'Q4_1').then((blocks) => ggufBlock('head', shape, 'Q4_1', blocks))),
  'GGUF Q6_K': () => {
    // No encoder: codes as they come, each block's scale small.
    const bytes = Uint8Array.from({ length: 1001 * 210 }, (_, i) => Math.imul(i + 1, 0x9e3779b1) >>> 24);
    const view = new DataView(bytes.buffer);
    for (let at = 0; at < bytes.length; at += 210) view.setUint16(at + 208, floatToHalf(1e-4), true);
    return ggufBlock('head', [1001, 256], 'Q6_K', bytes);
  },
  'a codebook of 4 bits, as NF4': () => {
    const codebook = Float32Array.from({ length: 16 }, (_, i) => Math.tanh((i - 7.5) / 5));
    const options = { blockSize: 64, codebook };
    const stored = { blockSize: 64, book: 'tanh' };
    return encoded(async (shape, rows) => codebook4('head', shape, await encodeCodebook4('head', shape, rows, options), stored));
  },
  'affine, 4 bits': () => {
    const options = { bits: 4, groupSize: 64, grid: 'asymmetric' } as const;
    return encoded(async (shape, rows) => affine('head', shape, await encodeAffine('head', shape, rows, options), options));
  },
};

type Rows = (range: readonly [number, number]) => Promise<Float32Array>;

function encoded(make: (shape: readonly [number, number], rows: Rows) => Promise<Weight>): Promise<Weight> {
  const values = numbers(1001 * 256, 0.2, 7);
  return make([1001, 256], async ([from, to]) => values.slice(from * 256, to * 256));
}

type Running = Given & { run(options?: { objective?: Objective }): Promise<Collected> };

/** What differs between the head in chunks and all of it at once in f64, in words. */
async function differences(
  given: Running,
  { objective = base, row = crossEntropyRow }: { objective?: Objective; row?: RowLoss } = {},
): Promise<string[]> {
  const wanted = await expected(given, row);
  const found = await given.run({ objective });
  const paths = ['hidden', ...(given.weight.matrix === undefined ? [] : ['head.weight'])];
  expect([...found.gradients.keys()].sort()).toEqual(paths.sort());
  const off = Math.abs(found.loss - wanted.loss) / Math.max(1, Math.abs(wanted.loss));
  return [...(off < tolerance ? [] : [`loss: ${found.loss}, not ${wanted.loss}`]), ...apart(found.gradients, wanted.gradients, tolerance)];
}

/** The chunked head against all of it at once, on the current device. */
export function headSuite(): void {
  let before = 0;
  beforeEach(() => {
    before = memory().numTensors;
  });
  afterEach(() => expect(memory().numTensors).toBe(before));

  it.each([1, 7, 64, 65].flatMap((rows) => [1000, 1001].map((vocabulary) => [rows, vocabulary] as const)))(
    'gives loss, dx and dW of %i rows over %i ids',
    async (rows, vocabulary) => {
      expect(await withHead({ rows, make: () => denseHead(vocabulary, 32) }, differences)).toEqual([]);
    },
  );

  it.each(Object.entries(packedHeads))('gives loss and dx of a frozen head, %s', async (_, make) => {
    expect(await withHead({ rows: 33, make }, differences)).toEqual([]);
  });

  it.each(objectives)('takes %s', async (_, objective, row) => {
    const head = { rows: 65, make: () => denseHead(1001, 32) };
    expect(await withHead(head, (given) => differences(given, { objective, row }))).toEqual([]);
  });

  it('has the slopes of finite differences', () =>
    withHead({ rows: 20, make: () => denseHead(65, 16) }, async ({ hidden, weight, run }) => {
      const { gradients } = await run();
      for (const parameter of [hidden, weight.matrix!]) {
        const gradient = gradients.get(parameter.path)!;
        const norm = Math.hypot(...gradient);
        const values = (await parameter.read().data()).slice() as Float32Array;
        const along = async (step: number): Promise<number> => {
          parameter.write(
            tensor(
              values.map((value, i) => value + (step * gradient[i]!) / norm),
              [...parameter.shape],
            ),
          );
          return (await run()).loss;
        };
        const central = async (step: number): Promise<number> => ((await along(step)) - (await along(-step))) / (2 * step);
        const slope = (4 * (await central(0.05)) - (await central(0.1))) / 3;
        await along(0);
        expect(Math.abs(slope / norm - 1)).toBeLessThan(1e-3);
      }
    }));

  it('gives the same bits again, and the same numbers in other chunks', () =>
    withHead({ rows: 65, make: () => denseHead(1001, 32) }, async ({ run }) => {
      const first = await run();
      expect(await run()).toEqual(first);
      for (const chunkRows of [1, 9, 64]) {
        const other = await run({ chunkRows });
        expect(Math.abs(other.loss - first.loss)).toBeLessThan(tolerance * first.loss);
        expect(apart(other.gradients, first.gradients, tolerance)).toEqual([]);
      }
    }));
}

/** What the head holds and launches where the device has kernels for it. */
export function headKernelSuite(): void {
  const [rows, vocabulary, width, chunkRows] = [72, 4001, 16, 16];
  // Without the rows that no target is for: 64 of 72, in 4 chunks.
  const chunks = 4;
  const [logits, matrix] = [4 * vocabulary * chunkRows, 4 * vocabulary * width];

  const measured = (trainable: boolean): Promise<{ bytes: number; launches: ReadonlyMap<string, number> }> =>
    withHead({ rows, make: () => denseHead(vocabulary, width, trainable) }, async ({ run }) => {
      const ledger = openMemoryLedger();
      const before = ledger.bytes();
      const launches = await launchesOf(async () => void (await run({ chunkRows })));
      const bytes = ledger.peak() - before;
      ledger.dispose();
      return { bytes, launches };
    });
  const counted = (launches: ReadonlyMap<string, number>, ...names: string[]): number[] => names.map((name) => launches.get(name) ?? 0);

  it('holds the logits of one chunk, which become their gradient, and goes over a frozen matrix once in each direction', async () => {
    const { bytes, launches } = await measured(false);
    expect(bytes).toBeGreaterThanOrEqual(logits);
    expect(bytes).toBeLessThan(1.1 * logits);
    const names = ['BatchMatMul', crossEntropyOp.kernelName, crossEntropyGradOp.kernelName, 'Add', 'Sum'];
    expect(counted(launches, ...names)).toEqual([2 * chunks, chunks, chunks, 0, 1]);
    expect(totalOf(launches)).toBeLessThanOrEqual(8 * chunks + 8);
  });

  it("holds one gradient of a trained matrix beside a chunk's logits, to which chunks add", async () => {
    const { bytes, launches } = await measured(true);
    expect(bytes).toBeGreaterThanOrEqual(logits + matrix);
    expect(bytes).toBeLessThan(1.1 * (logits + matrix));
    expect(counted(launches, 'BatchMatMul', addProductOp.kernelName, 'Add')).toEqual([2 * chunks + 1, chunks - 1, 0]);
  });
}
