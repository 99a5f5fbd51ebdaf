import { describe, expect, it } from 'vitest';
import {
  ConfigError,
  createDraw,
  denseParameter,
  dispose,
  dynamicMap,
  gradientsOf,
  matMul,
  memory,
  noise,
  ShapeError,
  slice,
  tensor1d,
  tensor2d,
  tidy,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import {
  affine,
  codebook4,
  createCall,
  csr,
  denseWeight,
  disposeWeight,
  encodeAffine,
  encodeCodebook4,
  encodeGgufBlocks,
  ggufBlock,
  packCsr,
  rowsOfTensor,
  weightBytes,
  weightStack,
  type Weight,
} from '../src/index.ts';
import { nf4 } from './nf4.ts';

const shape: [number, number] = [6, 64];
const [out, width] = shape;
const draw = createDraw(3, 0);
const host = (value: Tensor): number[] => [...value.dataSync()];

function values(i: number): Tensor2D {
  return noise(shape, draw.at(`w${i}`), 'gaussian') as Tensor2D;
}

async function encoded(i: number, make: (matrix: Tensor2D, path: string) => Promise<Weight>): Promise<Weight> {
  const matrix = values(i);
  const weight = await make(matrix, `experts.${i}`);
  matrix.dispose();
  return weight;
}

/** One matrix of each format that stacks, by number. */
const kinds: Readonly<Record<string, (i: number) => Promise<Weight>>> = {
  dense: async (i) => denseWeight(denseParameter(`experts.${i}.weight`, values(i), { role: 'matrix' })),
  'nf4 of blocks of 32': (i) =>
    encoded(i, async (matrix, path) => {
      const options = { blockSize: 32, codebook: nf4 };
      return codebook4(path, shape, await encodeCodebook4(path, shape, rowsOfTensor(matrix), options), { blockSize: 32, book: 'nf4' });
    }),
  'nf4 with nested scales': (i) =>
    encoded(i, async (matrix, path) => {
      const options = { blockSize: 64, codebook: nf4, nestedMap: dynamicMap({ signed: true }) };
      return codebook4(path, shape, await encodeCodebook4(path, shape, rowsOfTensor(matrix), options), { blockSize: 64, book: 'nf4' });
    }),
  'affine codes of 3 bits': (i) =>
    encoded(i, async (matrix, path) => {
      const options = { bits: 3, groupSize: 32, grid: 'asymmetric' } as const;
      return affine(path, shape, await encodeAffine(path, shape, rowsOfTensor(matrix), options), options);
    }),
  'GGUF blocks': (i) =>
    encoded(i, async (matrix, path) => ggufBlock(path, shape, 'Q4_0', await encodeGgufBlocks(path, shape, rowsOfTensor(matrix), 'Q4_0'))),
};

const make = async (kind: string, count = 3): Promise<Weight[]> => {
  const weights: Weight[] = [];
  for (let i = 0; i < count; i++) weights.push(await kinds[kind]!(i));
  return weights;
};

const denseOf = (weight: Weight): number[] => tidy(() => host(weight.dense()));

describe('a stack', () => {
  it.each(Object.keys(kinds))('of %s holds its matrices bit for bit, in their bytes', async (kind) => {
    const before = memory().numTensors;
    const weights = await make(kind);
    const expected = await Promise.all(
      weights.map(async (weight) => ({
        dense: denseOf(weight),
        raw: await Promise.all(Object.entries(weight.parts).map(async ([name, part]) => [name, part.role, await part.raw()] as const)),
        options: weight.options,
        kind: weight.kind,
      })),
    );
    const bytes = weights.reduce((sum, weight) => sum + weightBytes(weight), 0);
    const stack = weightStack('experts', weights);
    expect([stack.count, stack.shape, weightBytes(stack)]).toEqual([3, shape, bytes]);
    expect(Object.values(stack.parts).map(({ path }) => path)).toEqual(Object.keys(stack.parts).map((name) => `experts.${name}`));
    for (const part of Object.values(stack.parts)) expect(part.shape[0]).toBe(3);
    for (const [i, { dense, raw, options, kind: ofOne }] of expected.entries()) {
      const one = stack.at(i, `other.${i}`);
      expect([one.kind, one.options, one.shape]).toEqual([ofOne, options, shape]);
      expect(denseOf(one)).toEqual(dense);
      const own = await Promise.all(Object.entries(one.parts).map(async ([name, part]) => [name, part.role, await part.raw()] as const));
      expect(own).toEqual(raw);
      expect(Object.values(one.parts)[0]!.path).toMatch(new RegExp(`^other\\.${i}\\.`));
      disposeWeight(one);
    }
    disposeWeight(stack);
    expect(memory().numTensors).toBe(before);
  });

  it.each(Object.keys(kinds))('of %s gives each run of rows the product of its matrix, and dy·W back, frozen', async (kind) => {
    const before = memory().numTensors;
    const stack = weightStack('experts', await make(kind));
    const ends = [0, 4, 4, 9];
    const runs = tensor1d(ends, 'int32');
    const x = noise([11, width], draw.at('x'), 'gaussian') as Tensor2D;
    const dy = noise([11, out], draw.at('dy'), 'gaussian') as Tensor2D;
    const { value, gradients } = gradientsOf(
      () => stack.applyGrouped(x, runs, createCall({ batch: {} })),
      [x],
      (of) => [{ of, value: dy }],
    );
    const [y, dx] = tidy(() => {
      const each = ends.slice(1).map((end, e) => {
        const one = stack.at(e);
        const w = one.dense();
        disposeWeight(one);
        const rows = (from: Tensor2D): Tensor2D => slice(from, [ends[e]!, 0], [end - ends[e]!, from.shape[1]]);
        return end === ends[e] ? [] : [[host(matMul(rows(x), w, false, true)), host(matMul(rows(dy), w))]];
      });
      return [0, 1].map((i) => each.flatMap((run) => run.flatMap((both) => both[i]!)));
    });
    const zeros = (width: number): number[] => Array<number>(2 * width).fill(0);
    host(value).forEach((entry, i) => expect(entry).toBeCloseTo([...y!, ...zeros(out)][i]!, 4));
    host(gradients[0]!).forEach((entry, i) => expect(entry).toBeCloseTo([...dx!, ...zeros(width)][i]!, 4));
    dispose([x, dy, runs, value, gradients[0]!]);
    disposeWeight(stack);
    expect(memory().numTensors).toBe(before);
  });

  it('of dense matrices trains as one parameter: dyᵀ·x of each run, zeros for a matrix without rows', async () => {
    const before = memory().numTensors;
    const stack = weightStack('experts', await make('dense'));
    const { matrix } = stack;
    expect([matrix!.path, matrix!.shape, matrix!.role]).toEqual(['experts.weight', [3, out, width], 'matrix']);
    const [runs, x] = [tensor1d([0, 4, 4, 9], 'int32'), noise([9, width], draw.at('x'), 'gaussian') as Tensor2D];
    const dy = noise([9, out], draw.at('dy'), 'gaussian') as Tensor2D;
    const watched = matrix!.read();
    const call = createCall({ batch: {}, watched: new Map([[matrix!, watched]]) });
    const { value, gradients } = gradientsOf(
      () => stack.applyGrouped(x, runs, call),
      [watched],
      (of) => [{ of, value: dy }],
    );
    const expected = tidy(() => {
      const of = (from: number, count: number): Tensor =>
        matMul(slice(dy, [from, 0], [count, out]), slice(x, [from, 0], [count, width]), true, false);
      return [...host(of(0, 4)), ...Array<number>(out * width).fill(0), ...host(of(4, 5))];
    });
    host(gradients[0]!).forEach((entry, i) => expect(entry).toBeCloseTo(expected[i]!, 4));
    const unread = gradientsOf(
      () => stack.applyGrouped(x, runs, { ...call, unread: true }),
      [watched],
      (of) => [{ of, value: dy }],
    );
    expect(host(unread.gradients[0]!)).toEqual(host(gradients[0]!));
    dispose([x, dy, runs, value, gradients[0]!, unread.value, unread.gradients[0]!]);
    disposeWeight(stack);
    expect(memory().numTensors).toBe(before);
  });

  it('of one weight several times has as many copies of it, as a dense layer that becomes experts', async () => {
    const before = memory().numTensors;
    const weight = await kinds['GGUF blocks']!(0);
    const [dense, bytes] = [denseOf(weight), weightBytes(weight)];
    const stack = weightStack('experts', [weight, weight, weight]);
    expect(weightBytes(stack)).toBe(3 * bytes);
    for (const i of [0, 1, 2]) {
      const one = stack.at(i);
      expect(denseOf(one)).toEqual(dense);
      disposeWeight(one);
    }
    disposeWeight(stack);
    expect(memory().numTensors).toBe(before);
  });

  it('gives one matrix in its format again', async () => {
    const before = memory().numTensors;
    const stack = weightStack('experts', await make('GGUF blocks'));
    const [one, matrix] = [stack.at(1), values(7)];
    const again = await one.encode!(matrix, 'again');
    expect([again.kind, again.options]).toEqual([one.kind, one.options]);
    const wanted = await ggufBlock('again', shape, 'Q4_0', await encodeGgufBlocks('again', shape, rowsOfTensor(matrix), 'Q4_0'));
    expect(denseOf(again)).toEqual(denseOf(wanted));
    for (const weight of [one, again, wanted, stack]) disposeWeight(weight);
    matrix.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('refuses nothing, several shapes or formats, what has no such product, a number it has not, and a gradient of codes', async () => {
    const before = memory().numTensors;
    const [dense, packed, nested] = [await kinds['dense']!(0), await kinds['GGUF blocks']!(0), await kinds['nf4 with nested scales']!(0)];
    const plain = await kinds['nf4 of blocks of 32']!(0);
    const small = denseWeight(denseParameter('s.weight', tensor2d([1, 2], [1, 2]), { role: 'matrix' }));
    expect(() => weightStack('m', [])).toThrow(/at least one/);
    expect(() => weightStack('m', [dense, small])).toThrow(ShapeError);
    expect(() => weightStack('m', [dense, packed])).toThrow(/weight 1 of the stack is gguf/);
    expect(() => weightStack('m', [plain, nested])).toThrow(ConfigError);
    const { values: entries, columns, rows } = packCsr(denseOf(dense), shape);
    const stored = denseParameter('c.values.weight', tensor2d(entries, [1, entries.length]), { role: 'values' });
    const sparse = csr('c', shape, { values: denseWeight(stored), columns, rows });
    expect(() => weightStack('m', [sparse])).toThrow(/'csr' has no products of stacks/);
    const options = { bits: 4, groupSize: 32, grid: 'absmax' } as const;
    const source = values(0);
    const parts = await encodeAffine('a', shape, rowsOfTensor(source), options);
    const ordered = affine('a', shape, { ...parts, order: Int32Array.from({ length: width }, (_, k) => width - 1 - k) }, options);
    expect(() => weightStack('m', [ordered])).toThrow(/'affine' has no products of stacks/);
    const stack = weightStack('m', [packed]);
    for (const wrong of [-1, 1, 0.5]) expect(() => stack.at(wrong)).toThrow(/stack of 1 matrices/);
    const part = stack.parts['weight']!;
    const [x, runs] = [source, tensor1d([0, 6], 'int32')];
    expect(() => stack.applyGrouped(x, runs, createCall({ batch: {}, watched: new Map([[part, part.read()]]) }))).toThrow(
      /no gradient flows/,
    );
    expect(() => stack.applyGrouped(x, x as never, createCall({ batch: {} }))).toThrow(/takes runs int32/);
    dispose([source, runs]);
    for (const weight of [dense, nested, plain, small, sparse, ordered, stack]) disposeWeight(weight);
    expect(memory().numTensors).toBe(before);
  });
});
