import { describe, expect, it } from 'vitest';
import { grad, grads } from '@tensorflow/tfjs-core';
import {
  fill,
  openMemoryLedger,
  stopGradient,
  type View,
  dispose,
  keep,
  recordTape,
  denseParameter,
  ConfigError,
  FormatError,
  matMul,
  memory,
  mul,
  plainView,
  ShapeError,
  sum,
  tensor,
  tensor1d,
  tensor2d,
  tidy,
  transpose,
  type Parameter,
  type Role,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import {
  affine,
  codebook4,
  createCall,
  denseWeight,
  disposeWeight,
  encodeAffine,
  encodeCodebook4,
  encodeGgufBlocks,
  fakeQuant,
  ggufBlock,
  lowRank,
  normalFloatOf,
  rowsOfTensor,
  weightBytes,
  type Weight,
} from '../src/index.ts';
import { nf4 } from './nf4.ts';

/** Any increasing table of 256 does for storage; the real one belongs to the method. */
const table = Float32Array.from({ length: 256 }, (_, i) => (i - 127) / 128);

const call = createCall({ batch: {} });
const wave = (length: number, step: number): Float32Array =>
  Float32Array.from({ length }, (_, i) => Math.sin(step * i + 1) * (1 + (i % 7)));
const matrix = (rows: number, width: number, step: number): Tensor2D => tensor2d(wave(rows * width, step), [rows, width]);
const parameter = (path: string, value: Tensor, role: Role = 'matrix', trainable = false): Parameter =>
  denseParameter(path, value, { role, trainable });

const values = (t: Tensor): number[] => [...t.dataSync()];
const distance = (a: Tensor, b: Tensor): number => {
  const [x, y] = [values(a), values(b)];
  expect(x.length).toBe(y.length);
  return Math.max(...x.map((value, i) => Math.abs(value - y[i]!))) / Math.max(1, ...y.map(Math.abs));
};
/** f32 sums of up to 96 products, in another order. */
const tolerance = 2e-6;

const shape = [10, 96] as const;

async function packed(source: Tensor2D, kind: string): Promise<Weight> {
  const to = [source.shape[0], source.shape[1]] as const;
  if (kind.startsWith('codebook4')) {
    const nested = kind.endsWith('nested') ? { nestedMap: table } : {};
    const parts = await encodeCodebook4('m', to, rowsOfTensor(source), { blockSize: 64, codebook: nf4, ...nested });
    return codebook4('m', to, parts, { blockSize: 64, book: 'nf4' });
  }
  const format = kind as 'F16';
  return ggufBlock('m', to, format, await encodeGgufBlocks('m.weight', to, rowsOfTensor(source), format));
}

const kinds: [kind: string, make: () => Promise<Weight>][] = [
  ['dense', async () => denseWeight(parameter('m.weight', matrix(...shape, 0.37)))],
  [
    'low-rank',
    async () => lowRank({ a: parameter('m.a', matrix(3, shape[1], 0.2)), b: parameter('m.b', matrix(shape[0], 3, 0.3)), scale: 0.5 }),
  ],
  ...['codebook4', 'codebook4-nested', 'F16', 'BF16', 'Q4_0', 'Q4_1', 'Q8_0'].map((kind): [string, () => Promise<Weight>] => [
    kind,
    async () => {
      const source = matrix(...shape, 0.37);
      const weight = await packed(source, kind);
      source.dispose();
      return weight;
    },
  ]),
  ...['affine', 'affine-symmetric', 'affine-mapped'].map((kind): [string, () => Promise<Weight>] => [
    kind,
    async () => {
      const source = matrix(...shape, 0.37);
      const options = { bits: 3, groupSize: 32, grid: kind === 'affine' ? 'asymmetric' : 'absmax' } as const;
      const parts = await encodeAffine('m.weight', shape, rowsOfTensor(source), options);
      source.dispose();
      const order = Int32Array.from({ length: shape[1] }, (_, k) => (k * 35) % shape[1]);
      const inputScales = wave(shape[1], 0.2).map((factor) => 2 + factor / 7);
      return affine('m', shape, kind === 'affine-mapped' ? { ...parts, order, inputScales } : parts, options);
    },
  ]),
  [
    'fake-quant',
    async () => {
      const base = denseWeight(parameter('m.weight', matrix(...shape, 0.37)));
      const groups = (shape[0] * shape[1]) / 32;
      const parts = {
        scales: wave(groups, 0.2).map((step) => 4 + step / 7),
        zeros: new Uint8Array(groups).fill(3),
        inputScales: wave(shape[1], 0.2).map((factor) => 2 + factor / 7),
        rounding: { a: matrix(shape[0], 3, 0.2), b: matrix(3, shape[1], 0.3) },
      };
      return fakeQuant('m', base, parts, { bits: 3, groupSize: 32, grid: 'asymmetric' });
    },
  ],
  ...(['float32', 'bfloat16'] as const).map((scaleType): [string, () => Promise<Weight>] => [
    `normal-float, ${scaleType}`,
    async () => {
      const source = matrix(...shape, 0.37);
      const options = { bits: 3, scaleBits: 4, scaleType, blockSize: 16, groupSize: 4 } as const;
      const weight = await normalFloatOf('m', shape, rowsOfTensor(source), options);
      source.dispose();
      return weight;
    },
  ]),
  ['Q4_K', async () => ggufBlock('m', [3, 256], 'Q4_K', blocksOf(3, 144, [0, 2]))],
  ['Q6_K', async () => ggufBlock('m', [3, 256], 'Q6_K', blocksOf(3, 210, [208]))],
];

/** Arbitrary bytes with a scale of 2^-6 where a half float is stored. */
function blocksOf(count: number, size: number, halves: number[]): Uint8Array {
  const bytes = Uint8Array.from({ length: count * size }, (_, i) => (i * 37 + (i >> 3)) & 255);
  for (let block = 0; block < count; block++) for (const at of halves) bytes.set([0x00, 0x24], block * size + at);
  return bytes;
}

describe.each(kinds)('a %s weight', (_, make) => {
  it('applies x·Wᵀ, and its transpose backward, as its dense matrix does, and leaves no tensor behind', async () => {
    const before = memory().numTensors;
    const weight = await make();
    const [out, width] = weight.shape;
    const x = matrix(5, width, 0.11);
    const dy = matrix(5, out, 0.23);
    const w = weight.dense();
    tidy(() => {
      expect(distance(weight.apply(x, call), matMul(x, w, false, true))).toBeLessThan(tolerance);
      const dx = grad((input) => sum(mul(weight.apply(input as Tensor2D, call), dy)))(x);
      expect(distance(dx, matMul(dy, w))).toBeLessThan(tolerance);
    });
    for (const t of [x, dy, w]) t.dispose();
    disposeWeight(weight);
    expect(memory().numTensors).toBe(before);
  });

  it('gives rows by range and by id', async () => {
    const weight = await make();
    const w = weight.dense();
    tidy(() => {
      const all = values(w);
      const width = weight.shape[1];
      const expected = [2, 0, 2].flatMap((row) => all.slice(row * width, (row + 1) * width));
      expect(values(weight.dense([1, 3]))).toEqual(all.slice(width, 3 * width));
      // What is being fitted looks nothing up.
      expect(weight.lookup === undefined).toBe(weight.kind === 'fake-quant');
      const looked = weight.lookup === undefined ? expected : values(weight.lookup(tensor1d([2, 0, 2], 'int32'), call));
      expect(Math.max(...looked.map((value, i) => Math.abs(value - expected[i]!)))).toBeLessThan(1e-5);
    });
    w.dispose();
    disposeWeight(weight);
  });

  it('shows the gradient of its matrix to whoever wants it, whole and by rows', async () => {
    const weight = await make();
    const [out, width] = weight.shape;
    const given: Tensor[] = [];
    const watching = createCall({
      batch: {},
      wanted: new Set([weight]),
      onGradient: (of, gradient) => {
        expect(of).toBe(weight);
        given.push(keep(gradient()), keep(gradient([1, 3])));
      },
    });
    tidy(() => {
      const x = matrix(5, width, 0.11);
      const dy = matrix(5, out, 0.23);
      grad((input) => sum(mul(weight.apply(input as Tensor2D, watching), dy)))(x);
      const whole = matMul(dy, x, true, false);
      expect(distance(given[0]!, whole)).toBeLessThan(tolerance);
      expect(values(given[1]!)).toEqual(values(given[0]!).slice(width, 3 * width));
    });
    dispose(given);
    disposeWeight(weight);
  });

  it('goes backward through what a view made for the forward alone', async () => {
    const weight = await make();
    const dense = weight.kind === 'dense' || weight.kind === 'low-rank';
    const viewed = createCall({ batch: {}, view: dense ? shifting : onlyScales });
    const x = matrix(5, weight.shape[1], 0.11);
    const dy = matrix(5, weight.shape[0], 0.23);
    const tape = recordTape(() => weight.apply(x, viewed));
    const [dx] = tape.pull([x], [{ of: tape.value, value: dy }]) as [Tensor];
    // A linear map: ⟨dy, W·x⟩ = ⟨dx, x⟩ for the W of this view.
    const [forward, backward] = tidy(() => [
      sum(mul(tape.value, dy)).dataSync()[0]!,
      sum(mul(dx, x)).dataSync()[0]!,
    ]) as unknown as number[];
    expect(Math.abs(forward! / backward! - 1)).toBeLessThan(1e-4);
    for (const t of [x, dy, dx, tape.value]) t.dispose();
    disposeWeight(weight);
  });

  it('keeps neither x nor a float copy of itself for the backward pass while it is frozen', async () => {
    const weight = await make();
    const x = matrix(64, weight.shape[1], 0.11);
    expect(bytesKept(x, (mapped) => weight.apply(mapped, call))).toBeLessThanOrEqual(64);
    expect(bytesKept(x, (mapped) => weight.apply(mapped, createCall({ batch: {}, wanted: new Set([weight]) })))).toBeGreaterThanOrEqual(
      x.size * 4,
    );
    x.dispose();
    disposeWeight(weight);
  });
});

/** Bytes that a recorded forward holds beside its output; its input goes with the record, so that keeping it shows. */
function bytesKept(x: Tensor2D, forward: (x: Tensor2D) => Tensor): number {
  const ledger = openMemoryLedger();
  const before = ledger.bytes();
  const tape = recordTape(() => forward(mul(stopGradient(x), 2) as Tensor2D));
  const kept = ledger.bytes() - before - tape.value.size * 4;
  tape.dispose();
  tape.value.dispose();
  ledger.dispose();
  return kept;
}

/** Every f32 part is read shifted by something small: a tensor that the forward's tidy frees. */
const shifting: View = {
  of: (part) => ({ kind: 'offset', value: fill([...part.shape], 1e-3) }),
  touches: () => true,
};
const onlyScales: View = {
  of: (part) => (part.role === 'scale' ? shifting.of(part) : { kind: 'plain' }),
  touches: () => true,
};

describe('a dense weight that trains', () => {
  it('gets its gradient from the tape', () => {
    const p = parameter('m.weight', matrix(4, 6, 0.3), 'matrix', true);
    const weight = denseWeight(p);
    tidy(() => {
      const x = matrix(5, 6, 0.1);
      const dy = matrix(5, 4, 0.2);
      const gradient = grad((w) => sum(mul(weight.apply(x, createCall({ batch: {}, watched: new Map([[p, w]]) })), dy)))(p.read());
      expect(distance(gradient, matMul(dy, x, true, false))).toBeLessThan(tolerance);
      const training = createCall({ batch: {}, watched: new Map([[p, p.read()]]) });
      expect(bytesKept(x, (mapped) => weight.apply(mapped, training))).toBeGreaterThanOrEqual(x.size * 4);
    });
    disposeWeight(weight);
  });

  it('gets its gradient through a lookup, summed over repeated ids', () => {
    const p = parameter('m.weight', matrix(4, 3, 0.3), 'embedding', true);
    const weight = denseWeight(p);
    tidy(() => {
      const ids = tensor1d([1, 3, 1], 'int32');
      const gradient = grad((w) => sum(weight.lookup!(ids, createCall({ batch: {}, watched: new Map([[p, w]]) }))))(p.read());
      expect(values(gradient)).toEqual([0, 0, 0, 2, 2, 2, 0, 0, 0, 1, 1, 1]);
    });
    disposeWeight(weight);
  });

  it('is read through the view', () => {
    const p = parameter('m.weight', matrix(4, 6, 0.3));
    const weight = denseWeight(p);
    tidy(() => {
      const offset = matrix(4, 6, 0.9);
      const shifted = createCall({ batch: {}, view: { ...plainView, of: () => ({ kind: 'offset', value: offset }) } });
      const x = matrix(2, 6, 0.1);
      const expected = matMul(
        x,
        tensor2d(
          values(p.read()).map((value, i) => value + values(offset)[i]!),
          [4, 6],
        ),
        false,
        true,
      );
      expect(distance(weight.apply(x, shifted), expected)).toBeLessThan(tolerance);
    });
    disposeWeight(weight);
  });
});

describe('a low-rank weight', () => {
  it('trains both factors as the formed product would', () => {
    const [a, b] = [parameter('a', matrix(3, 6, 0.3), 'adapterA', true), parameter('b', matrix(4, 3, 0.4), 'adapterB', true)];
    const weight = lowRank({ a, b, scale: 2 });
    tidy(() => {
      const x = matrix(5, 6, 0.1);
      const dy = matrix(5, 4, 0.2);
      const through = (av: Tensor, bv: Tensor): Tensor =>
        weight.apply(
          x,
          createCall({
            batch: {},
            watched: new Map([
              [a, av],
              [b, bv],
            ]),
          }),
        );
      const [da, db] = grads((av: Tensor, bv: Tensor) => sum(mul(through(av, bv), dy)))([a.read(), b.read()]) as [Tensor, Tensor];
      const dW = mul(matMul(dy, x, true, false), 2);
      expect(distance(da, matMul(b.read(), dW, true, false))).toBeLessThan(tolerance);
      expect(distance(db, matMul(dW, transpose(a.read())))).toBeLessThan(tolerance);
    });
    disposeWeight(weight);
  });

  it('refuses factors that do not meet', () => {
    const [a, b] = [parameter('a', matrix(3, 6, 0.3)), parameter('b', matrix(4, 2, 0.4))];
    expect(() => lowRank({ a, b })).toThrow(ShapeError);
    a.dispose();
    b.dispose();
  });
});

describe('a packed weight', () => {
  it.each(['codebook4', 'codebook4-nested', 'F16', 'BF16', 'Q4_0', 'Q4_1', 'Q8_0'])(
    '%s encodes another matrix in its own format',
    async (kind) => {
      const source = matrix(...shape, 0.37);
      const weight = await packed(source, kind);
      const other = matrix(12, 64, 0.71);
      const again = await weight.encode!(other, 'n');
      const direct = await packed(other, kind);
      expect(again.kind).toBe(weight.kind);
      expect(again.options).toEqual(weight.options);
      expect(again.shape).toEqual([12, 64]);
      expect(Object.values(again.parts).every((part) => part.path.startsWith('n.weight'))).toBe(true);
      const [a, b] = [again.dense(), direct.dense()];
      expect(values(a)).toEqual(values(b));
      for (const t of [source, other, a, b]) t.dispose();
      for (const w of [weight, again, direct]) disposeWeight(w);
    },
  );

  it.each(['F16', 'Q4_0', 'Q8_0'])('%s takes rows in any order, byte for byte', async (kind) => {
    const source = matrix(...shape, 0.37);
    const weight = await packed(source, kind);
    const taken = await weight.take!(Int32Array.of(7, 0, 7), 'n');
    const [w, t] = [weight.dense(), taken.dense()];
    const all = values(w);
    expect(values(t)).toEqual([7, 0, 7].flatMap((row) => all.slice(row * 96, (row + 1) * 96)));
    await expect(weight.take!(Int32Array.of(10), 'n')).rejects.toThrow(ConfigError);
    for (const each of [source, w, t]) each.dispose();
    for (const each of [weight, taken]) disposeWeight(each);
  });

  it('holds the bytes its format says, and nothing more', async () => {
    const source = matrix(128, 512, 0.37);
    const entries = 128 * 512;
    const plain = await packed(source, 'codebook4');
    expect(weightBytes(plain)).toBe(entries / 2 + (entries / 64) * 4 + 16 * 4);
    const nested = await packed(source, 'codebook4-nested');
    expect(weightBytes(nested)).toBe(entries / 2 + entries / 64 + (entries / 64 / 256) * 4 + 16 * 4 + 256 * 4 + 4);
    const q8 = await packed(source, 'Q8_0');
    expect(weightBytes(q8)).toBe((entries / 32) * 34);
    source.dispose();
    for (const weight of [plain, nested, q8]) disposeWeight(weight);
  });

  it('names its parts as the files do and gives their bytes back', async () => {
    const source = matrix(...shape, 0.37);
    const weight = await packed(source, 'codebook4-nested');
    expect(Object.keys(weight.parts).sort()).toEqual([
      'weight',
      'weight.absmax',
      'weight.nested_absmax',
      'weight.nested_offset',
      'weight.nested_quant_map',
      'weight.quant_map',
    ]);
    const codes = await weight.parts['weight']!.raw();
    expect(codes).toMatchObject({ dtype: 'U8', shape: [480, 1] });
    expect(codes.bytes).toHaveLength(480);
    const absmax = await weight.parts['weight.absmax']!.raw();
    expect(absmax).toMatchObject({ dtype: 'U8', shape: [15] });
    expect(absmax.bytes).toHaveLength(15);
    source.dispose();
    disposeWeight(weight);
  });

  it('refuses to train its scales through the tape', async () => {
    const source = matrix(...shape, 0.37);
    const weight = await packed(source, 'codebook4');
    const absmax = weight.parts['weight.absmax']!;
    const training = createCall({ batch: {}, watched: new Map([[absmax, absmax.read()]]) });
    const x = matrix(2, 96, 0.1);
    expect(() => weight.apply(x, training)).toThrow(ConfigError);
    expect(() => {
      weight.parts['weight']!.trainable = true;
    }).toThrow(ConfigError);
    for (const t of [source, x]) t.dispose();
    disposeWeight(weight);
  });

  it('refuses parts of the wrong size before it allocates', () => {
    const before = memory().numTensors;
    const parts = { codes: new Uint8Array(32), codebook: nf4, absmax: new Float32Array(1) };
    const make = (change: object, blockSize = 64): Weight => codebook4('m', [8, 8], { ...parts, ...change }, { blockSize, book: 'nf4' });
    expect(() => make({ codes: new Uint8Array(31) })).toThrow(FormatError);
    expect(() => make({ absmax: new Float32Array(2) })).toThrow("'m.weight.absmax' must hold 1 values, got 2");
    expect(() => make({ codebook: new Float32Array(15) })).toThrow(FormatError);
    expect(() => make({ nestedMap: table, absmax: new Uint8Array(1) })).toThrow('and is absent');
    expect(() => make({}, 48)).toThrow('blockSize must be one of');
    expect(() => ggufBlock('m', [2, 32], 'Q8_0', new Uint8Array(67))).toThrow(FormatError);
    expect(() => ggufBlock('m', [2, 48], 'Q8_0', new Uint8Array(68))).toThrow(ShapeError);
    expect(() => denseWeight(parameter('v', tensor([1, 2])))).toThrow(ShapeError);
    expect(memory().numTensors).toBe(before + 1);
  });
});
