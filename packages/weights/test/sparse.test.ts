import { describe, expect, it } from 'vitest';
import {
  add,
  createDraw,
  ConfigError,
  denseParameter,
  dispose,
  expandGroups,
  expandGroupsOp,
  FormatError,
  gradientsOf,
  matMul,
  memory,
  mul,
  noise,
  packBits,
  packBytes,
  pickGroups,
  pickGroupsOp,
  plainView,
  scalar,
  ShapeError,
  sum,
  tensor1d,
  tensor2d,
  tidy,
  unpackFields,
  unpackFieldsOp,
  wordsOf,
  type Parameter,
  type Tensor,
  type View,
} from '@niwaki/tensor';
import {
  affine,
  createCall,
  csr,
  denseWeight,
  disposeWeight,
  encodeAffine,
  encodeGgufBlocks,
  ggufBlock,
  masked,
  maskOf,
  nOfM,
  packCsr,
  packMask,
  packNOfM,
  rowsOfTensor,
  weightBytes,
  type Weight,
} from '../src/index.ts';

const shape: [number, number] = [6, 16];
const count = shape[0] * shape[1];
const call = createCall({ batch: {} });
const wave = (length: number, step: number): number[] => Array.from({ length }, (_, i) => Math.sin(step * i + 1) * (1 + (i % 5)));
const source = wave(count, 0.7);
/** Two of every four kept, another pair in each group; the second row loses all but one entry. */
const kept = Uint8Array.from({ length: count }, (_, e) => {
  const group = Math.floor(e / 4);
  if (group >= 4 && group < 8) return e === 21 ? 1 : 0;
  return e % 4 === group % 4 || e % 4 === (group + 1 + (group % 3)) % 4 ? 1 : 0;
});
const pruned = source.map((value, e) => Math.fround(value) * kept[e]! + 0);
const values = async (t: Tensor): Promise<number[]> => {
  const host = Array.from(await t.data(), (v) => v + 0); // no -0
  t.dispose();
  return host;
};
const inner = (path: string, host: Float32Array, of: [number, number]): Weight =>
  denseWeight(denseParameter(`${path}.weight`, tensor2d(host, of), { role: 'values' }));

const dense = (path = 'm'): Weight => denseWeight(denseParameter(`${path}.weight`, tensor2d(source, shape), { role: 'matrix' }));
const packed24 = (): Weight => {
  const { values: host, index } = packNOfM('m', pruned, shape, { n: 2, m: 4, kept });
  return nOfM('m', shape, { values: inner('m.values', host, [6, 8]), index }, { n: 2, m: 4 });
};
const rowsOnly = (): Weight => {
  const { values: host, columns, rows } = packCsr(pruned, shape, kept);
  return csr('m', shape, { values: inner('m.values', host, [1, host.length]), columns, rows });
};
const half = async (host: ArrayLike<number>, of: [number, number], path: string): Promise<Weight> => {
  const matrix = tensor2d(Float32Array.from(host), of);
  const blocks = await encodeGgufBlocks(path, of, rowsOfTensor(matrix), 'F16');
  matrix.dispose();
  return ggufBlock(path, of, 'F16', blocks);
};
const kinds: [string, () => Weight][] = [
  ['masked', () => masked('m', dense(), packMask(kept))],
  ['n-of-m', packed24],
  ['csr', rowsOnly],
];

/** The gradient of a weight's values by that of the dense matrix, and which of the found ones to compare with it. */
function whatTrains(kind: string, full: readonly number[]): [number[], (found: number[]) => number[]] {
  const picked = full.filter((_, e) => kept[e] === 1);
  if (kind === 'masked') return [full.map((d, e) => d * kept[e]!), (found) => found];
  if (kind === 'csr') return [picked, (found) => found];
  // Slots that hold a kept entry; the second row's groups have others too.
  const { index } = packNOfM('m', pruned, shape, { n: 2, m: 4, kept });
  const entry = Array.from({ length: count / 2 }, (_, k) => 4 * (k >> 1) + ((index[k >> 2]! >> (2 * (k & 3))) & 3));
  return [entry.map((e) => full[e]!), (found) => found];
}

describe('fields of a few bits', () => {
  it.each([1, 2, 3, 4, 5, 6, 8, 16])('of %i bits come out of words on the device', async (bits) => {
    const fields = Array.from({ length: 203 }, (_, i) => (i * 7919 + (i % 3) * 40503) % 2 ** bits);
    const words = packBytes(packBits(fields, { bits }));
    expect(await values(unpackFields(words, { bits, count: 203 }))).toEqual(fields);
    words.dispose();
  });

  it('come out of several chunks', async () => {
    const fields = Array.from({ length: 2 ** 18 + 77 }, (_, i) => (i * 31) % 8);
    const words = tensor1d(wordsOf(packBits(fields, { bits: 3 })), 'int32');
    expect(await values(unpackFields(words, { bits: 3, count: fields.length }))).toEqual(fields);
    words.dispose();
  });

  it.each([
    [2, 4, 37],
    [1, 4, 64],
    [2, 8, 21],
    [3, 16, 11],
    [5, 32, 9],
  ])('place %i of every %i as the references do, bit for bit', async (n, m, groups) => {
    const before = memory().numTensors;
    const places = Array.from({ length: groups * n }, (_, k) => (k % n) * Math.floor(m / n) + ((k * 7) % Math.floor(m / n)));
    const words = packBytes(packBits(places, { bits: Math.log2(m) }));
    const [given, whole] = [tensor1d(wave(groups * n, 0.3)), tensor1d(wave(groups * m, 0.4))];
    const placed = { n, m, groups };
    const options = { bits: Math.log2(m), count: groups * n };
    const referenced = tidy(() => [
      ...unpackFieldsOp.reference({ words }, options),
      ...expandGroupsOp.reference({ values: given, words }, placed),
      ...pickGroupsOp.reference({ dense: whole, words }, placed),
    ]);
    const found = [unpackFields(words, options), expandGroups(given, words, placed), pickGroups(whole, words, placed)];
    for (const [i, tensor] of found.entries()) expect(await values(tensor)).toEqual(await values(referenced[i]!));
    dispose([words, given, whole]);
    expect(memory().numTensors).toBe(before);
  });

  it.each([1, 2, 3, 4, 5, 6, 8, 16])('of %i bits are what the reference gives', async (bits) => {
    const words = packBytes(
      packBits(
        Array.from({ length: 203 }, (_, i) => (i * 7919) % 2 ** bits),
        { bits },
      ),
    );
    const [referenced] = tidy(() => unpackFieldsOp.reference({ words }, { bits, count: 203 }));
    expect(await values(unpackFields(words, { bits, count: 203 }))).toEqual(await values(referenced!));
    words.dispose();
  });

  it('are refused where the words are too few', () => {
    const words = tensor1d([1], 'int32');
    expect(() => unpackFields(words, { bits: 1, count: 33 })).toThrow(ShapeError);
    expect(() => unpackFields(words, { bits: 9, count: 1 })).toThrow(ConfigError);
    words.dispose();
  });
});

describe.each(kinds)('a sparse weight (%s)', (kind, make) => {
  it('gives the products of the masked matrix, and back', async () => {
    const before = memory().numTensors;
    const weight = make();
    expect(weight.kind).toBe(kind);
    const [x, g] = [tensor2d(wave(48, 0.3), [3, 16]), tensor2d(wave(18, 0.9), [3, 6])];
    const w = tensor2d(pruned, shape);
    const expected = await values(matMul(x, w, false, true));
    const { value, gradients } = gradientsOf(
      () => weight.apply(x, call),
      [x],
      (of) => [{ of, value: g }],
    );
    const [dx, expectedDx] = [await values(gradients[0]!), await values(matMul(g, w))];
    (await values(value)).forEach((y, i) => expect(y).toBeCloseTo(expected[i]!, 5));
    dx.forEach((d, i) => expect(d).toBeCloseTo(expectedDx[i]!, 5));
    expect(await values(weight.dense())).toEqual(pruned);
    expect(await values(weight.dense([1, 4]))).toEqual(pruned.slice(16, 64));
    dispose([x, g, w]);
    disposeWeight(weight);
    expect(memory().numTensors).toBe(before);
  });

  it('trains kept entries alone, and stays as sparse', async () => {
    const before = memory().numTensors;
    const weight = make();
    const trained = Object.values(weight.parts)[0]!;
    trained.trainable = true;
    const [x, g] = [tensor2d(wave(48, 0.3), [3, 16]), tensor2d(wave(18, 0.9), [3, 6])];
    const watched = new Map<Parameter, Tensor>([[trained, trained.read()]]);
    const { value, gradients } = gradientsOf(
      () => weight.apply(x, createCall({ batch: {}, watched })),
      [trained.read()],
      (of) => [{ of, value: g }],
    );
    value.dispose();
    const full = await values(matMul(g, x, true, false));
    const gradient = gradients[0]!;
    const found = await values(gradient.clone());
    expect(gradient.shape).toEqual(trained.shape);
    const [expected, at] = whatTrains(kind, full);
    at(found).forEach((d, k) => expect(d).toBeCloseTo(expected[k]!, 4));
    // What an optimizer may do: any update at all.
    const update = noise(trained.shape, createDraw(3, 0).at('update'), 'gaussian');
    const ok = scalar(1);
    trained.commit({ kind: 'dense', value: update }, ok, { decay: 0.1 });
    const now = await values(weight.dense());
    // A slot that a group did not need may come to hold something: never more than n of them.
    const limit = kind === 'n-of-m' ? Array.from(kept, () => 1) : [...kept];
    expect(now.every((v, e) => v === 0 || limit[e] === 1)).toBe(true);
    expect(now.filter((v) => v !== 0)).toHaveLength(kind === 'n-of-m' ? count / 2 : kept.filter((k) => k === 1).length);
    expect(now).not.toEqual(pruned);
    dispose([x, g, gradient, update, ok]);
    disposeWeight(weight);
    expect(memory().numTensors).toBe(before);
  });

  it('takes another matrix in at the same places', async () => {
    const before = memory().numTensors;
    const weight = make();
    const other = tensor2d(wave(count, 0.11), shape);
    const again = await weight.encode!(other, 'n');
    const host = await values(other);
    const found = await values(again.dense());
    expect(found.map((v, e) => (kept[e] === 1 ? v : 0))).toEqual(host.map((v, e) => v * kept[e]! + 0));
    expect(found.every((v, e) => v === 0 || v === host[e])).toBe(true);
    expect(found.filter((v, e) => v !== 0 && kept[e] === 0).length).toBe(
      kind === 'n-of-m' ? count / 2 - kept.filter((k) => k === 1).length : 0,
    );
    expect(again.kind).toBe(kind);
    expect(Object.values(again.parts).every(({ path }) => path.startsWith('n.'))).toBe(true);
    disposeWeight(again);
    disposeWeight(weight);
    expect(memory().numTensors).toBe(before);
  });
});

describe('a masked weight', () => {
  const noisy = (of: Parameter, value: Tensor): View => ({
    of: (read) => (read === of ? { kind: 'offset', value } : plainView.of(read)),
    touches: () => true,
  });

  it('keeps its zeros when its values are read perturbed', async () => {
    const weight = masked('m', dense(), packMask(kept));
    const offset = tensor2d(wave(count, 1.9), shape);
    const view = noisy(weight.matrix!, offset);
    const x = tensor2d(wave(16, 0.3), [1, 16]);
    const y = await values(weight.apply(x, createCall({ batch: {}, view })));
    const expected = await values(tidy(() => sum(mul(mul(add(tensor2d(source, shape), offset), tensor2d([...kept], shape)), x), 1)));
    y.forEach((v, i) => expect(v).toBeCloseTo(expected[i]!, 4));
    dispose([offset, x]);
    disposeWeight(weight);
  });

  it('takes a bit an entry more than its base, and tells its mask', async () => {
    const weight = masked('m', dense(), packMask(kept));
    expect(weightBytes(weight)).toBe(4 * count + count / 8);
    expect(await maskOf(weight)).toEqual(kept);
    expect(await maskOf({ parts: {} })).toBeUndefined();
    disposeWeight(weight);
  });

  it('over F16 stores zeros in two bytes', async () => {
    const weight = masked('m', await half(pruned, shape, 'm'), packMask(kept));
    expect(weightBytes(weight)).toBe(2 * count + count / 8);
    const found = await values(weight.dense());
    found.forEach((v, e) => expect(v).toBeCloseTo(pruned[e]!, 2));
    expect(found.map((v) => (v === 0 ? 0 : 1))).toEqual([...kept]);
    disposeWeight(weight);
  });

  it('over codes without a zero of their own multiplies what they decode to', async () => {
    // The grid from 1 to 6 has no 0.
    const positive = tensor2d(
      source.map((v) => 1 + Math.abs(v)),
      shape,
    );
    const options = { bits: 4, groupSize: 16, grid: 'awq' } as const;
    const base = affine('m', shape, await encodeAffine('m.weight', shape, rowsOfTensor(positive), options), options);
    const decoded = await values(base.dense());
    const weight = masked('m', base, packMask(kept));
    const w = decoded.map((v, e) => v * kept[e]! + 0);
    expect(await values(weight.dense())).toEqual(w);
    const x = tensor2d(wave(32, 0.3), [2, 16]);
    const expected = await values(matMul(x, tensor2d(w, shape), false, true));
    (await values(weight.apply(x, call))).forEach((y, i) => expect(y).toBeCloseTo(expected[i]!, 4));
    const again = await weight.encode!(positive, 'm');
    expect((await values(again.dense())).filter((v) => v === 0)).toHaveLength(kept.filter((k) => k === 0).length);
    dispose([positive, x]);
    disposeWeight(again);
    disposeWeight(weight);
  });

  it('under a second mask keeps what both keep, with one mask stored', async () => {
    const before = memory().numTensors;
    const other = kept.map((_, e) => (e % 3 === 0 ? 0 : 1));
    const weight = masked('m', masked('m', dense(), packMask(kept)), packMask(other));
    expect(weightBytes(weight)).toBe(4 * count + count / 8);
    expect(await maskOf(weight)).toEqual(kept.map((k, e) => k & other[e]!));
    expect(await values(weight.dense())).toEqual(pruned.map((v, e) => v * other[e]! + 0));
    disposeWeight(weight);
    expect(memory().numTensors).toBe(before);
  });

  it('is refused with a mask of another size', () => {
    const base = dense();
    expect(() => masked('m', base, new Uint8Array(3))).toThrow(/takes 12 bytes, got 3/);
    disposeWeight(base);
  });
});

describe('n of m', () => {
  it('packs the row of the format', async () => {
    const row = [0.5, -2, 1, 0.1, 3, -0.2, 0.3, -4];
    const { values: host, index } = packNOfM('m', row, [1, 8], { n: 2, m: 4, kept: [0, 1, 1, 0, 1, 0, 0, 1] });
    expect([...host]).toEqual([-2, 1, 3, -4]);
    expect([...index]).toEqual([0b11001001]);
  });

  it.each([
    [2, 4, 17],
    [1, 4, 8.5],
    [2, 8, 8.75],
    [1, 8, 4.375],
    [4, 32, 4.625],
  ])('%i:%i over f32 takes the bits of the formula and comes back', async (n, m, bits) => {
    const of: [number, number] = [4, 64];
    const sparse = wave(256, 0.37).map((v, e) => (e % m < n ? Math.fround(v) : 0));
    const { values: host, index } = packNOfM('m', sparse, of, { n, m });
    const weight = nOfM('m', of, { values: inner('m.values', host, [4, (64 / m) * n]), index }, { n, m });
    expect((8 * weightBytes(weight)) / 256).toBe(bits);
    expect(await values(weight.dense())).toEqual(sparse);
    disposeWeight(weight);
  });

  it('holds exactly n slots a group, zeros too', async () => {
    const { values: host, index } = packNOfM('m', [0, 0, 0, 0, 0, 0, 0, 5], [1, 8], { n: 2, m: 4 });
    expect([...host]).toEqual([0, 0, 0, 5]);
    expect([...index]).toEqual([0b11000100]);
  });

  it('takes values in a format of their own: F16 values make 2:4 nine bits', async () => {
    const { values: host, index } = packNOfM('m', pruned, shape, { n: 2, m: 4, kept });
    const weight = nOfM('m', shape, { values: await half(host, [6, 8], 'm.values'), index }, { n: 2, m: 4 });
    expect((8 * weightBytes(weight)) / count).toBe(9);
    const x = tensor2d(wave(32, 0.3), [2, 16]);
    const w = weight.dense();
    const expected = await values(matMul(x, w, false, true));
    (await values(weight.apply(x, call))).forEach((y, i) => expect(y).toBeCloseTo(expected[i]!, 5));
    dispose([x, w]);
    disposeWeight(weight);
  });

  it('refuses what is no such matrix', () => {
    expect(() => packNOfM('m', [1, 1, 1, 0], [1, 4], { n: 2, m: 4 })).toThrow(/3 entries are kept in a group of 4/);
    expect(() => packNOfM('q', [1, 1, 1, 0, 0, 0], [1, 6], { n: 2, m: 4 })).toThrow(/'q' \[1, 6\]: rows of 6 entries are not groups of 4/);
    const weight = inner('m.values', new Float32Array(4), [1, 4]);
    expect(() => nOfM('m', [1, 8], { values: weight, index: new Uint8Array(2) }, { n: 2, m: 4 })).toThrow(FormatError);
    expect(() => nOfM('m', [1, 8], { values: weight, index: new Uint8Array(1) }, { n: 2, m: 5 })).toThrow(
      /m must be 4, 8, 16 or 32, got 5/,
    );
    expect(() => nOfM('m', [1, 8], { values: weight, index: new Uint8Array(1) }, { n: 4, m: 4 })).toThrow(
      /n must be a whole number from 1 to 3/,
    );
    disposeWeight(weight);
  });
});

describe('rows of entries', () => {
  it('take 6 bytes an entry and 4 a row', () => {
    const weight = rowsOnly();
    const entries = kept.filter((k) => k === 1).length;
    expect(weightBytes(weight)).toBe(4 * entries + 4 * Math.ceil(entries / 2) + 4 * 7);
    disposeWeight(weight);
  });

  it.each([
    ['rows that fall', [0, 2, 1, 3], [0, 1, 0], /falls from 2 to 1 at row 1/],
    ['rows that end early', [0, 1, 2, 2], [0, 1, 0], /from 0 to 2, the entries from 0 to 3/],
    ['columns out of range', [0, 1, 2, 3], [0, 4, 0], /holds 4 at 1/],
    ['columns that do not rise', [0, 2, 2, 3], [1, 1, 0], /holds 1 at 1/],
    ['too few columns', [0, 2, 2, 3], [1, 1], /must hold 3 values/],
  ])('are refused: %s', (_, rows, columns, message) => {
    const weight = inner('m.values', Float32Array.of(1, 2, 3), [1, 3]);
    const make = (): Weight => csr('m', [3, 4], { values: weight, columns: Int32Array.from(columns), rows: Int32Array.from(rows) });
    expect(make).toThrow(FormatError);
    expect(make).toThrow(message);
    disposeWeight(weight);
  });
});
