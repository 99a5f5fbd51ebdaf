import { describe, expect, it } from 'vitest';
import {
  add,
  ConfigError,
  createDraw,
  denseParameter,
  dispose,
  gradientsOf,
  matMul,
  memory,
  noise,
  ShapeError,
  tensor1d,
  tensor2d,
  tidy,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import {
  createCall,
  csr,
  denseWeight,
  disposeWeight,
  encodeGgufBlocks,
  ggufBlock,
  packCsr,
  rowsOfTensor,
  summed,
  weightBytes,
  type GgufEncoded,
  type Weight,
} from '../src/index.ts';
import { filesFolder, load, memoryFolderSink, saveModel } from '../../hub/src/index.ts';
import { lora } from '../../lowrank/src/index.ts';
import { adapt, mergeAdapter, unmergeAdapter } from '../../peft/src/index.ts';
import { bytesOf, distance, logits, onTiny, siteParameters, train } from '../../testing/src/contract-model.ts';

const shape: [number, number] = [12, 64];
const draw = createDraw(3, 0);
const host = (value: Tensor): number[] => [...value.dataSync()];
const source = (() => {
  const value = noise(shape, draw.at('w'), 'gaussian');
  const values = host(value);
  value.dispose();
  return values;
})();

async function packed(path: string, format: GgufEncoded, values: readonly number[] = source): Promise<Weight> {
  const matrix = tensor2d([...values], shape);
  const weight = ggufBlock(path, shape, format, await encodeGgufBlocks(path, shape, rowsOfTensor(matrix), format));
  matrix.dispose();
  return weight;
}

const valuesOf = (weight: Weight): number[] => {
  const dense = weight.dense();
  const values = host(dense);
  dense.dispose();
  return values;
};

/** The `count` entries that a packed matrix misses by most, as rows of entries. */
function rest(base: Weight, count: number, { trainable = false } = {}): Weight {
  const lost = valuesOf(base).map((value, e) => source[e]! - value);
  const order = lost.map((_, e) => e).sort((a, b) => Math.abs(lost[b]!) - Math.abs(lost[a]!));
  const kept = new Uint8Array(lost.length);
  for (const e of order.slice(0, count)) kept[e] = 1;
  const { values, columns, rows } = packCsr(lost, shape, kept);
  const stored = denseParameter('m.rest.values.weight', tensor2d(values, [1, count]), { role: 'values', trainable });
  return csr('m.rest', shape, { values: denseWeight(stored), columns, rows });
}

const errorOf = (weight: Weight): number => Math.sqrt(valuesOf(weight).reduce((sum, value, e) => sum + (value - source[e]!) ** 2, 0));

describe('a sum in a model', () => {
  it('is adapted, trained and saved as what it stands for, and takes no merge but a dense one', () =>
    onTiny(
      async (model) => {
        const { path, weight: float } = model.sites('model.layers.0.mlp.up_proj')[0]!;
        const [wide, values] = [float!.shape, valuesOf(float!)];
        const blocks = await encodeGgufBlocks(
          path,
          wide,
          async ([from, to]) => Float32Array.from(values.slice(from * wide[1], to * wide[1])),
          'Q4_0',
        );
        const base = ggufBlock(path, wide, 'Q4_0', blocks);
        const lost = valuesOf(base).map((value, e) => values[e]! - value);
        const { values: entries, columns, rows } = packCsr(lost, wide);
        const stored = denseParameter(`${path}.rest.values.weight`, tensor2d(entries, [1, entries.length]), { role: 'values' });
        const whole = await logits(model);
        model.replace(path, summed(path, [base, csr(`${path}.rest`, wide, { values: denseWeight(stored), columns, rows })]));
        // Nothing is lost that the rest does not hold.
        expect(distance(await logits(model), whole)).toBeLessThan(1e-4);
        const given = await bytesOf(siteParameters(model));
        const set = await adapt(model, lora({ rank: 2 }), { at: 'up_proj' });
        const { losses } = await train(model, { steps: 8, rate: 0.02 });
        expect(losses.at(-1)).toBeLessThan(losses[0]!);
        expect(await bytesOf(siteParameters(model))).toEqual(given);
        const adapted = await logits(model);
        await expect(mergeAdapter(model)).rejects.toThrow(/into: 'dense'/);
        await expect(mergeAdapter(model, set.name, { into: 'requantize' })).rejects.toThrow(ConfigError);
        await mergeAdapter(model, set.name, { into: 'dense' });
        expect(distance(await logits(model), adapted)).toBeLessThan(1e-4);
        await unmergeAdapter(model);
        expect(await bytesOf(siteParameters(model))).toEqual(given);
        model.detach(set.name);
        for (const adapter of set.sites.values()) for (const parameter of Object.values(adapter.parameters)) parameter.dispose();
        const sink = memoryFolderSink();
        await saveModel(model, sink);
        const { model: plain } = await load(filesFolder(sink.files));
        expect(distance(await logits(plain), await logits(model))).toBeLessThan(1e-4);
        plain.dispose();
      },
      { hidden_size: 32, intermediate_size: 32, head_dim: 8 },
    ));
});

describe('a sum', () => {
  it('of codes and the largest of what they lose is nearer to the matrix, in the bytes of both', async () => {
    const before = memory().numTensors;
    const base = await packed('m', 'Q4_0');
    const [alone, bytes] = [errorOf(base), weightBytes(base)];
    const sparse = rest(base, 40);
    const weight = summed('m', [base, sparse]);
    expect(weightBytes(weight)).toBe(bytes + weightBytes(sparse));
    const lost = valuesOf(base)
      .map((value, e) => (value - source[e]!) ** 2)
      .sort((a, b) => b - a)
      .slice(40);
    expect(errorOf(weight)).toBeCloseTo(Math.sqrt(lost.reduce((sum, value) => sum + value, 0)), 5);
    expect(errorOf(weight)).toBeLessThan(0.9 * alone);
    expect(Object.keys(weight.parts)).toContain('1.columns');
    expect(weight.options).toEqual({
      weights: [
        { kind: base.kind, options: base.options },
        { kind: 'csr', options: sparse.options },
      ],
    });
    disposeWeight(weight);
    expect(memory().numTensors).toBe(before);
  });

  it('gives x·Wᵀ and dy·W of its dense matrix, frozen, and keeps nothing', async () => {
    const before = memory().numTensors;
    const base = await packed('m', 'Q8_0');
    const weight = summed('m', [base, rest(base, 30)]);
    const [x, dy] = [noise([5, 64], draw.at('x'), 'gaussian') as Tensor2D, noise([5, 12], draw.at('dy'), 'gaussian') as Tensor2D];
    const given: number[][] = [];
    const call = createCall({ batch: {}, wanted: new Set([weight]), onGradient: (_, gradient) => given.push(host(gradient())) });
    const { value: y, gradients } = gradientsOf(
      () => weight.apply(x, call),
      [x],
      (of) => [{ of, value: dy }],
    );
    const expected = tidy(() => {
      const dense = weight.dense();
      return [matMul(x, dense, false, true), matMul(dy, dense), matMul(dy, x, true, false)].map(host);
    });
    // Q8_0 products may round x: both sides of the sum are within its step.
    [y, gradients[0]!].forEach((value, i) => host(value).forEach((entry, e) => expect(entry).toBeCloseTo(expected[i]![e]!, 4)));
    given[0]!.forEach((entry, e) => expect(entry).toBeCloseTo(expected[2]![e]!, 5));
    dispose([x, dy, y, ...(gradients as Tensor[])]);
    disposeWeight(weight);
    expect(memory().numTensors).toBe(before);
  });

  it('trains what can train: the values of the sparse part, with the gradient of the dense matrix at their places', async () => {
    const before = memory().numTensors;
    const base = await packed('m', 'Q4_1');
    const sparse = rest(base, 25, { trainable: true });
    const weight = summed('m', [base, sparse]);
    const values = sparse.parts['values'] ?? Object.values(sparse.parts).find(({ role }) => role === 'values')!;
    const [x, dy] = [noise([5, 64], draw.at('x'), 'gaussian') as Tensor2D, noise([5, 12], draw.at('dy'), 'gaussian') as Tensor2D];
    const { value: y, gradients } = gradientsOf(
      () => weight.apply(x, createCall({ batch: {}, watched: new Map([[values, values.read()]]) })),
      [values.read()],
      (of) => [{ of, value: dy }],
    );
    const whole = tidy(() => host(matMul(dy, x, true, false)));
    const places = valuesOf(sparse).flatMap((value, e) => (value === 0 ? [] : [e]));
    expect(places.length).toBe(25);
    host(gradients[0]!).forEach((entry, k) => expect(entry).toBeCloseTo(whole[places[k]!]!, 4));
    dispose([x, dy, y, ...(gradients as Tensor[])]);
    disposeWeight(weight);
    expect(memory().numTensors).toBe(before);
  });

  it('gives rows by number, by id, and in another order, where all of its weights do', async () => {
    const before = memory().numTensors;
    const [a, b] = [await packed('a', 'F16'), denseWeight(denseParameter('b.weight', tensor2d(source, shape), { role: 'matrix' }))];
    const weight = summed('m', [a, b]);
    const sum = tidy(() => host(add(a.dense(), b.dense())));
    const rows = (list: readonly number[]): number[] => list.flatMap((row) => sum.slice(row * 64, (row + 1) * 64));
    const some = weight.dense([3, 5]);
    expect(host(some)).toEqual(rows([3, 4]));
    const ids = tensor1d([7, 0, 7], 'int32');
    const found = weight.lookup!(ids, createCall({ batch: {} }));
    expect(host(found)).toEqual(rows([7, 0, 7]));
    const taken = await weight.take!(Int32Array.of(9, 2), 't');
    expect(valuesOf(taken)).toEqual(rows([9, 2]));
    expect(taken.kind).toBe('sum');
    const sparse = summed('s', [denseWeight(denseParameter('c.weight', tensor2d(source, shape), { role: 'matrix' })), rest(a, 9)]);
    expect([sparse.lookup, sparse.take, sparse.encode, weight.encode]).toEqual([undefined, undefined, undefined, undefined]);
    dispose([some, ids, found]);
    for (const each of [weight, taken, sparse]) disposeWeight(each);
    expect(memory().numTensors).toBe(before);
  });

  it('refuses one weight, other shapes, and parts of one name', async () => {
    const base = await packed('m', 'Q4_0');
    const other = denseWeight(denseParameter('o.weight', tensor2d([1, 2], [1, 2]), { role: 'matrix' }));
    const same = await packed('m', 'Q4_0');
    expect(() => summed('m', [base])).toThrow(ConfigError);
    expect(() => summed('m', [])).toThrow(/at least two/);
    expect(() => summed('m', [base, other])).toThrow(ShapeError);
    expect(() => summed('m', [base, same])).toThrow(/two parts of the sum are called 'm/);
    for (const each of [base, other, same]) disposeWeight(each);
  });
});
