import { describe, expect, it } from 'vitest';
import {
  add,
  createDraw,
  denseParameter,
  gradientsOf,
  memory,
  plainView,
  tensor1d,
  tensor2d,
  tidy,
  type Parameter,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import { createCall, denseWeight, type Call } from '@niwaki/weights';
import type { Adapter, Site } from '@niwaki/nn';
import { loraEmbedding } from '../src/lora-embedding.ts';
import { loraLinear, type LinearValues } from '../src/lora-linear.ts';
import { rowNorms } from '../src/direction.ts';
import { loraScale } from '../src/lora-options.ts';

const site = (bias?: readonly number[]): Site => ({
  path: 'layer',
  point: 'linear',
  inputId: 'x',
  weight: denseWeight(denseParameter('layer.weight', tensor2d([1, 2, 3, 4], [2, 2]), { role: 'matrix' })),
  ...(bias && { bias: denseParameter('layer.bias', tensor1d([...bias]), { role: 'bias' }) }),
});
const spec = { path: 'layer', point: 'linear', name: 'default', rank: 1, alpha: 2, rslora: false, dropout: 0 } as const;
const values = (rest: Partial<LinearValues> = {}): LinearValues => ({
  a: tensor2d([1, -1], [1, 2]),
  b: tensor2d([0.5, 2], [2, 1]),
  ...rest,
});
const call = (options: Partial<Parameters<typeof createCall>[0]> = {}): Call => createCall({ batch: {}, view: plainView, ...options });

const run = (adapter: Adapter, at: Site, x: Tensor, context: Call = call()): Tensor2D =>
  adapter.apply(
    x,
    (input) => {
      const y = at.weight!.apply(input as Tensor2D, context);
      return at.bias === undefined ? y : add(y, context.value(at.bias));
    },
    context,
    at,
  );

/** Gradients of Σ G·y with respect to the adapter's trainable parameters, by slot. */
function gradients(adapter: Adapter, at: Site, x: Tensor2D, g: Tensor2D): Record<string, number[]> {
  const trained = Object.entries(adapter.parameters).filter(([, parameter]) => parameter.trainable);
  const watched = new Map<Parameter, Tensor>(trained.map(([, parameter]) => [parameter, parameter.read()]));
  const found = gradientsOf(
    () => run(adapter, at, x, call({ watched })),
    trained.map(([, parameter]) => parameter.read()),
    (y) => [{ of: y, value: g }],
  ).gradients;
  return Object.fromEntries(trained.map(([slot], i) => [slot, [...found[i]!.dataSync()]]));
}

/** f32 sums of a handful of products. */
const tolerance = 1e-5;
const distance = (given: ArrayLike<number>, expected: readonly number[]): number =>
  given.length === expected.length ? Math.max(...expected.map((value, i) => Math.abs(value - given[i]!))) : Infinity;

describe('LoRA at a linear map', () => {
  it('adds alpha/rank times the product: check 1 of the paper worked by hand', async () => {
    const [adapter, at] = [loraLinear(spec, values()), site()];
    expect(distance(adapter.delta!().dense().dataSync(), [1, -1, 4, -4])).toBeLessThan(tolerance);
    expect(distance((await adapter.merge!(at.weight!)).matrix.dataSync(), [2, 1, 7, 0])).toBeLessThan(tolerance);
    expect(distance(run(adapter, at, tensor2d([1, 2], [1, 2])).dataSync(), [4, 7])).toBeLessThan(tolerance);
  });

  it('with B = 0 is the base bit for bit, and only B has a gradient', () => {
    const [adapter, at] = [loraLinear(spec, values({ b: tensor2d([0, 0], [2, 1]) })), site()];
    const x = tensor2d([1, 2], [1, 2]);
    expect([...run(adapter, at, x).dataSync()]).toEqual([5, 11]);
    const found = gradients(adapter, at, x, tensor2d([1, -1], [1, 2]));
    expect(found['lora_A.weight']!.map(Math.abs)).toEqual([0, 0]);
    expect(found['lora_B.weight']).toEqual([-2, 2]);
  });

  it('scales by alpha/rank, or alpha/sqrt(rank) in rsLoRA', () => {
    expect(loraScale(16, 64, false)).toBe(0.25);
    expect(loraScale(16, 64, true)).toBe(2);
    expect(loraScale(16, 16, true)).toBe(4);
  });

  it('adds a trained bias with the scale, and merges it', async () => {
    const [adapter, at] = [loraLinear(spec, values({ bias: tensor1d([10, 20]) })), site([100, 200])];
    expect(distance(run(adapter, at, tensor2d([1, 2], [1, 2])).dataSync(), [4 + 100 + 20, 7 + 200 + 40])).toBeLessThan(tolerance);
    const merged = await adapter.merge!(at.weight!, at.bias);
    expect(distance(merged.bias!.dataSync(), [120, 240])).toBeLessThan(tolerance);
    expect(adapter.delta).toBeUndefined();
  });

  it('follows its strength', () => {
    const [adapter, at] = [loraLinear(spec, values()), site()];
    adapter.strength = 0.5;
    expect(adapter.scale).toBe(1);
    expect(distance(run(adapter, at, tensor2d([1, 2], [1, 2])).dataSync(), [4.5, 9])).toBeLessThan(tolerance);
  });
});

describe('dropout of the adapter', () => {
  const dropping = { ...spec, dropout: 0.5 };
  const x = (): Tensor2D =>
    tensor2d(
      Float32Array.from({ length: 4000 }, (_, i) => 1 + (i % 7)),
      [2000, 2],
    );

  it('is off in evaluation and when the rate is 0', () => {
    const at = site();
    const plain = [...run(loraLinear(spec, values()), at, x()).dataSync()];
    expect([...run(loraLinear(dropping, values()), at, x()).dataSync()]).toEqual(plain);
  });

  it('drops entries of the input in training, scales the rest, and leaves the base alone', () => {
    const at = site();
    const ones = tensor2d(new Float32Array(4000).fill(1), [2000, 2]);
    const y = run(
      loraLinear(dropping, values({ a: tensor2d([1, 0], [1, 2]), b: tensor2d([1, 0], [2, 1]) })),
      at,
      ones,
      call({ training: true }),
    ).dataSync();
    // Row by row: base 3, and 2·(1·keep/0.5) on top where the first entry was kept.
    const first = Array.from({ length: 2000 }, (_, i) => y[2 * i]!);
    expect(new Set(first)).toEqual(new Set([3, 7]));
    expect(Math.abs(first.filter((value) => value === 7).length / 2000 - 0.5)).toBeLessThan(0.05);
    expect(new Set(Array.from({ length: 2000 }, (_, i) => y[2 * i + 1]!))).toEqual(new Set([7]));
  });

  it('gives a recomputed forward the same bits, and another micro-batch other ones', () => {
    const [adapter, at] = [loraLinear(dropping, values()), site()];
    const at0 = { training: true, draw: createDraw(3, 5) };
    const one = [...run(adapter, at, x(), call(at0)).dataSync()];
    expect([...run(adapter, at, x(), call(at0)).dataSync()]).toEqual(one);
    expect([...run(adapter, at, x(), call({ ...at0, at: { micro: 1 } })).dataSync()]).not.toEqual(one);
    expect([...run(adapter, at, x(), call({ ...at0, draw: createDraw(3, 6) })).dataSync()]).not.toEqual(one);
  });
});

describe('DoRA', () => {
  const dora = (magnitude: readonly number[], rest: Partial<LinearValues> = {}, alpha = 2): ReturnType<typeof loraLinear> =>
    loraLinear({ ...spec, alpha }, values({ magnitude: tensor1d([...magnitude]), ...rest }));
  const base = [Math.sqrt(5), 5];

  it('turns every row of W + s·B·A to length m: check 2 worked by hand', async () => {
    const [adapter, at] = [dora(base), site()];
    expect(distance((await adapter.merge!(at.weight!)).matrix.dataSync(), [2, 1, 5, 0])).toBeLessThan(tolerance);
    const x = tensor2d([1, 2], [1, 2]);
    expect(distance(run(adapter, at, x).dataSync(), [4, 5])).toBeLessThan(tolerance);
    const found = gradients(adapter, at, x, tensor2d([1, -1], [1, 2]));
    expect(distance(found['lora_magnitude_vector']!, [1.788854, -1])).toBeLessThan(tolerance);
    // LoRA's gradients with G replaced by G·m/n, where n = [√5, 7] is no function of A and B: G' = [1, -5/7].
    const [g0, g1] = [1, -5 / 7];
    expect(distance(found['lora_B.weight']!, [2 * g0 * -1, 2 * g1 * -1])).toBeLessThan(tolerance);
    const down = 2 * (g0 * 0.5 + g1 * 2);
    expect(distance(found['lora_A.weight']!, [down * 1, down * 2])).toBeLessThan(tolerance);
  });

  it('does not scale the bias of the base', () => {
    const [adapter, at] = [dora(base), site([100, 200])];
    expect(distance(run(adapter, at, tensor2d([1, 2], [1, 2])).dataSync(), [104, 205])).toBeLessThan(tolerance);
  });

  it('computes the norm again after a write to A, B or the strength, and not before', () => {
    const [adapter, at] = [dora(base), site()];
    const x = tensor2d([1, 2], [1, 2]);
    const norm = adapter.parameters['norm']!;
    run(adapter, at, x);
    const version = norm.version;
    run(adapter, at, x);
    expect(norm.version).toBe(version);
    adapter.parameters['lora_B.weight']!.write(tensor2d([0, 0], [2, 1]));
    expect(distance(run(adapter, at, x).dataSync(), [5, 11])).toBeLessThan(tolerance);
    expect(norm.version).toBe(version + 1);
    adapter.strength = 2;
    run(adapter, at, x);
    expect(norm.version).toBe(version + 2);
  });

  it('shows both parts the same dropped input', () => {
    const at = site();
    const rows = 400;
    const ones = tensor2d(new Float32Array(2 * rows).fill(1), [rows, 2]);
    const dropped = loraLinear({ ...spec, dropout: 0.5 }, values({ magnitude: tensor1d([2 * base[0]!, 2 * 7]) }));
    const y = run(dropped, at, ones, call({ training: true })).dataSync();
    // V = [[2,1],[7,0]], n = [√5, 7], m/n = [2, 2]: y = base + (2-1)·W·x̂ + 2·s·B·A·x̂ with x̂ in {0, 2}².
    const expected = new Set(
      [
        [0, 0],
        [2, 0],
        [0, 2],
        [2, 2],
      ].map(([p, q]) => [3 + p! + 2 * q! + 2 * (p! - q!), 7 + 3 * p! + 4 * q! + 2 * (4 * p! - 4 * q!)].map((v) => v.toFixed(3)).join()),
    );
    const seen = new Set(Array.from({ length: rows }, (_, i) => [y[2 * i]!, y[2 * i + 1]!].map((v) => v.toFixed(3)).join()));
    expect(seen).toEqual(expected);
  });

  it('takes norms by tiles that equal the whole', () => {
    const [out, width] = [1030, 1024];
    const w = denseWeight(
      denseParameter(
        'w',
        tensor2d(
          Float32Array.from({ length: out * width }, (_, i) => Math.sin(i)),
          [out, width],
        ),
        { role: 'matrix' },
      ),
    );
    const a = tensor2d(
      Float32Array.from({ length: width }, (_, i) => Math.cos(i)),
      [1, width],
    );
    const b = tensor2d(
      Float32Array.from({ length: out }, (_, i) => (i % 3) - 1),
      [out, 1],
    );
    const norms = rowNorms(w, { a, b }, 0.5).dataSync();
    expect(norms.length).toBe(out);
    for (const row of [0, 1023, 1024, 1029]) {
      let total = 0;
      for (let c = 0; c < width; c++) total += (Math.fround(Math.sin(row * width + c)) + 0.5 * ((row % 3) - 1) * Math.cos(c)) ** 2;
      expect(norms[row]! / Math.sqrt(total)).toBeCloseTo(1, 5);
    }
  });
});

describe('LoRA at an embedding', () => {
  const table = (): Site => ({
    path: 'embed',
    point: 'embedding',
    inputId: 'ids',
    weight: denseWeight(denseParameter('embed.weight', tensor2d([1, 2, 3, 4, 5, 6], [3, 2]), { role: 'embedding' })),
  });
  const pair = (magnitude?: Tensor1D): ReturnType<typeof loraEmbedding> =>
    loraEmbedding(
      { ...spec, path: 'embed', point: 'embedding' },
      { a: tensor2d([1, 0, -1], [1, 3]), b: tensor2d([0.5, 2], [2, 1]), magnitude },
    );
  const look = (adapter: Adapter, at: Site, ids: readonly number[], context = call()): Tensor2D =>
    adapter.apply(tensor1d([...ids], 'int32'), (input) => at.weight!.lookup!(input as Tensor1D, context), context, at);

  it('adds rows of s·(B·A)ᵀ, the same as its delta and its merge', async () => {
    const [adapter, at] = [pair(), table()];
    expect(distance(look(adapter, at, [2, 0, 2]).dataSync(), [5 - 1, 6 - 4, 1 + 1, 2 + 4, 5 - 1, 6 - 4])).toBeLessThan(tolerance);
    expect(distance(adapter.delta!().dense().dataSync(), [1, 4, 0, 0, -1, -4])).toBeLessThan(tolerance);
    expect(distance(adapter.delta!().dense([1, 3]).dataSync(), [0, 0, -1, -4])).toBeLessThan(tolerance);
    expect(distance(adapter.delta!().lookup!(tensor1d([2], 'int32'), call()).dataSync(), [-1, -4])).toBeLessThan(tolerance);
    expect(distance((await adapter.merge!(at.weight!)).matrix.dataSync(), [2, 6, 3, 4, 4, 2])).toBeLessThan(tolerance);
  });

  it('sums the gradients of a token that comes twice', () => {
    const [adapter, at] = [pair(), table()];
    const [a, b] = [adapter.parameters['lora_embedding_A']!, adapter.parameters['lora_embedding_B']!];
    const watched = new Map([a, b].map((p) => [p, p.read()]));
    const g = tensor2d([1, 0, 0, 1, 2, 0], [3, 2]);
    const [da, db] = gradientsOf(
      () => look(adapter, at, [2, 0, 2], call({ watched })),
      [a.read(), b.read()],
      (y) => [{ of: y, value: g }],
    ).gradients;
    expect(distance(da!.dataSync(), [2 * 2, 0, 2 * (0.5 + 1)])).toBeLessThan(tolerance);
    expect(distance(db!.dataSync(), [2 * (-1 - 2), 2 * 1])).toBeLessThan(tolerance);
  });

  it('as DoRA turns the columns', async () => {
    const [adapter, at] = [pair(tensor1d([1, 1])), table()];
    const v = [2, 6, 3, 4, 4, 2];
    const n = [Math.hypot(2, 3, 4), Math.hypot(6, 4, 2)];
    const expected = v.map((value, i) => value / n[i % 2]!);
    expect(distance((await adapter.merge!(at.weight!)).matrix.dataSync(), expected)).toBeLessThan(tolerance);
    expect(distance(look(adapter, at, [0, 1, 2]).dataSync(), expected)).toBeLessThan(tolerance);
  });
});

it('a forward leaves no tensors behind', () => {
  const at = site([1, 2]);
  const x = tensor2d([1, 2], [1, 2]);
  for (const adapter of [loraLinear(spec, values()), loraLinear({ ...spec, dropout: 0.3 }, values({ magnitude: tensor1d([1, 1]) }))]) {
    const once = (): void => void tidy(() => run(adapter, at, x, call({ training: true })).dataSync());
    once();
    const before = memory().numTensors;
    once();
    adapter.parameters['lora_A.weight']!.write(tensor2d([3, 3], [1, 2]));
    once();
    expect(memory().numTensors).toBe(before);
  }
});
