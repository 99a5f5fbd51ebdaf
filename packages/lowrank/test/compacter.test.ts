import { describe, expect, it } from 'vitest';
import { advance, bytesOf, distance, logits, onTiny, siteParameters, stepOf, train } from '../../testing/src/contract-model.ts';
import {
  add,
  matMul,
  memory,
  mul,
  noise,
  createDraw,
  reshape,
  slice,
  tensor,
  tensor2d,
  tidy,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import { modelGradientError } from '../../testing/src/model-gradient.ts';
import { perturb } from '../../testing/src/perturb.ts';
import type { Model } from '@niwaki/nn';
import { bottleneck, compacter, hypercomplex, type CompacterOptions } from '../src/index.ts';
import { adapt, mergeAdapter, unbound } from '@niwaki/peft';

const outputs = ['**.self_attn', '**.mlp'];

/** What a set of this size would train, without a model of it. */
function trainedNumbers(options: CompacterOptions, { width, places }: { width: number; places: number }): number {
  const method = compacter({ trainNorms: false, ...options });
  const model = { info: { hiddenSize: width } } as Model;
  const sizes = (shapes: Readonly<Record<string, readonly (number | string)[]>>): number =>
    Object.values(shapes).reduce((sum, shape) => sum + shape.reduce<number>((product, side) => product * Number(side), 1), 0);
  return places * sizes(method.stored(undefined!, model)) + sizes(method.shared!.stored([], model));
}

describe('a product by Kronecker factors', () => {
  it('is the one worked by hand', async () => {
    const rule = tensor([1, 0, 0, 1, 0, 1, -1, 0], [2, 2, 2]);
    const s = tensor([1, 2, 0, 1], [2, 2, 1]);
    const t = tensor([3, -1], [2, 1, 1]);
    const x = tensor2d([[1, 2, 3, 4]]);
    const y = tidy(() => hypercomplex(x, { rule, s, t }));
    expect([...(await y.data())]).toEqual([19, 31]);
    for (const used of [rule, s, t, x, y]) used.dispose();
  });

  it('is the product by the whole matrix, of rank 2 too', async () => {
    const draw = createDraw(3, 0);
    const [n, inner, outer, rank] = [3, 4, 2, 2] as const;
    const rule = noise([n, n, n], draw.at('A'), 'gaussian');
    const s = noise([n, inner, rank], draw.at('s'), 'gaussian');
    const t = noise([n, rank, outer], draw.at('t'), 'gaussian');
    const x = noise([5, n * inner], draw.at('x'), 'gaussian') as Tensor2D;
    const dense = tidy(() => {
      const blocks = matMul(s, t);
      // [i, a, p, c, q] = A[i, a, c] · B[i, p, q], summed over i.
      let whole: Tensor | undefined;
      for (let i = 0; i < n; i++) {
        const a = reshape(slice(rule, [i, 0, 0], [1, n, n]), [n, 1, n, 1]);
        const b = reshape(slice(blocks, [i, 0, 0], [1, inner, outer]), [1, inner, 1, outer]);
        whole = whole === undefined ? mul(a, b) : add(whole, mul(a, b));
      }
      return matMul(x, reshape(whole!, [n * inner, n * outer]) as Tensor2D);
    });
    const factored = tidy(() => hypercomplex(x, { rule, s, t }));
    expect(distance((await factored.data()) as Float32Array, (await dense.data()) as Float32Array)).toBeLessThan(1e-4);
    for (const used of [rule, s, t, x, dense, factored]) used.dispose();
  });

  it("multiplies quaternions where the A are Hamilton's", async () => {
    // Rows of x times A: A_i[a, c] is the sign of e_i in e_a · e_i → e_c, for x·q with q = Σ b_i e_i.
    const table = [
      [
        [0, 1],
        [1, 1],
        [2, 1],
        [3, 1],
      ],
      [
        [1, 1],
        [0, -1],
        [3, 1],
        [2, -1],
      ],
      [
        [2, 1],
        [3, -1],
        [0, -1],
        [1, 1],
      ],
      [
        [3, 1],
        [2, 1],
        [1, -1],
        [0, -1],
      ],
    ] as const;
    const values = new Float32Array(64);
    for (let a = 0; a < 4; a++) for (let i = 0; i < 4; i++) values[(i * 4 + a) * 4 + table[a]![i]![0]] = table[a]![i]![1];
    const rule = tensor(values, [4, 4, 4]);
    const s = tensor([5, 6, 7, 8], [4, 1, 1]);
    const t = tensor([1, 1, 1, 1], [4, 1, 1]);
    const x = tensor2d([[1, 2, 3, 4]]);
    const y = tidy(() => hypercomplex(x, { rule, s, t }));
    // (1 + 2i + 3j + 4k)(5 + 6i + 7j + 8k)
    expect([...(await y.data())]).toEqual([-60, 12, 30, 24]);
    for (const used of [rule, s, t, x, y]) used.dispose();
  });
});

describe('compacter', () => {
  it('trains what the paper counts for T5-base', () => {
    const norms = 47_616;
    expect(trainedNumbers({}, { width: 768, places: 1 })).toBe(2376 + 64);
    expect(trainedNumbers({}, { width: 768, places: 48 }) + norms).toBe(161_728);
    expect(trainedNumbers({}, { width: 768, places: 24 }) + norms).toBe(104_704);
  });

  it('draws s and t up to the bounds of the reference, the shared A of its deviation, and begins with biases of 0', async () => {
    const before = memory().numTensors;
    // T5-base at a reduction of 32: of 768 to 24 by 4 blocks, s_i is [192, 1] and t_i [1, 6].
    const model = { info: { hiddenSize: 768 } } as Model;
    const method = compacter().bind({ ...unbound, draw: createDraw(3, 0) });
    const { adapter } = await method.make({ path: 'm', point: 'ffn', inputId: 'x' }, await method.plan!([], model));
    const { phm_rule: rule, ...own } = adapter!.parameters;
    const most = async (slot: string): Promise<number> => Math.max(...(await own[slot]!.read().data()).map(Math.abs));
    for (const [slot, shape, bound] of [
      ['adapter_down_s', [4, 192, 1], 0.24935],
      ['adapter_down_t', [4, 1, 6], 1.30931],
      ['adapter_up_s', [4, 6, 1], 1.30931],
      ['adapter_up_t', [4, 1, 192], 0.24935],
    ] as const) {
      expect(own[slot]!.shape).toEqual(shape);
      expect(await most(slot)).toBeLessThanOrEqual(bound + 5e-6);
      expect(await most(slot)).toBeGreaterThan(0.85 * bound);
    }
    expect([await most('adapter_down.bias'), await most('adapter_up.bias')]).toEqual([0, 0]);
    const values = await rule!.read().data();
    // Of 64 numbers: the deviation is known to a tenth of itself, and three of these are allowed.
    expect(Math.abs(Math.hypot(...values) / 8 / 1e-4 - 1)).toBeLessThan(0.3);
    for (const parameter of Object.values(adapter!.parameters)) parameter.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('names both numbers of a division that does not divide the bottleneck', () => {
    const model = { info: { hiddenSize: 768 } } as Model;
    const shapes = (options: CompacterOptions) => () => compacter(options).stored(undefined!, model);
    // 7 divides neither 768 nor 24; 16 divides 768 alone.
    expect(shapes({ division: 7 })).toThrow(/division of 7 does not divide 768/);
    expect(shapes({ division: 16 })).toThrow(/division of 16 does not divide 24/);
  });

  it('starts beside the base and not on it, inside its bounds, with gradients for every factor', () =>
    onTiny(async (model) => {
      const base = await logits(model);
      const set = await adapt(model, compacter({ reduction: 4, division: 2, trainNorms: false }), { at: outputs });
      const started = await logits(model);
      expect(distance(started, base)).toBeLessThan(1e-5);
      expect(started).not.toEqual(base);
      for (const { parameters } of set.sites.values()) {
        for (const [slot, { shape, read }] of Object.entries(parameters)) {
          if (shape.length !== 3 || slot === 'phm_rule') continue;
          const most = Math.max(...(await read().data()).map(Math.abs));
          expect(most).toBeLessThanOrEqual(Math.sqrt(12 / (shape[1]! + shape[2]!)));
          expect(most).toBeGreaterThan(0);
        }
      }
      const before = await bytesOf([...set.sites.values()].flatMap(({ parameters }) => Object.values(parameters)));
      await train(model, { steps: 1 });
      const after = await bytesOf([...set.sites.values()].flatMap(({ parameters }) => Object.values(parameters)));
      expect([...after].filter(([path, bytes]) => before.get(path) === bytes)).toEqual([]);
    }));

  it('gives the shared rule one gradient, of all its places', () =>
    onTiny(async (model) => {
      perturb(await adapt(model, compacter({ reduction: 4, division: 2 }), { at: outputs }), 3);
      expect(await modelGradientError(model)).toBeLessThan(1e-3);
    }));

  it('holds one rule for all places', () =>
    onTiny(async (model) => {
      const set = await adapt(model, compacter({ reduction: 4, division: 2 }), { at: outputs });
      expect(set.sites.size).toBe(4);
      expect(new Set([...set.sites.values()].map(({ parameters }) => parameters['phm_rule'])).size).toBe(1);
    }));

  it('trains copies of every norm, unless told not to, and no number of the base', () =>
    onTiny(async (model) => {
      const base = await bytesOf(model.parameters().values());
      const set = await adapt(model, compacter({ reduction: 4, division: 2 }), { at: outputs });
      expect([...set.replaced.keys()]).toEqual([
        'model.layers.0.input_layernorm.weight',
        'model.layers.0.post_attention_layernorm.weight',
        'model.layers.1.input_layernorm.weight',
        'model.layers.1.post_attention_layernorm.weight',
        'model.norm.weight',
      ]);
      const step = stepOf(model);
      const losses = await advance(model, step, { from: 0, steps: 10 });
      step.dispose();
      expect(losses.at(-1)).toBeLessThan(losses[0]! - 0.01);
      const all = await bytesOf(model.parameters().values());
      expect(new Map([...base.keys()].map((path) => [path, all.get(path)!]))).toEqual(base);
      await expect(mergeAdapter(model)).rejects.toThrow(/\(merge\)/);
    }));

  it('names the numbers that do not divide, and the place that is none', () =>
    onTiny(async (model) => {
      const before = memory().numTensors;
      await expect(adapt(model, compacter({ reduction: 4, division: 3 }), { at: outputs })).rejects.toThrow(/division of 3 .* 16/);
      await expect(adapt(model, compacter({ reduction: 5 }), { at: outputs })).rejects.toThrow(/reduction of 5 .* 16/);
      await expect(adapt(model, bottleneck({ reduction: 3 }), { at: outputs })).rejects.toThrow(/reduction of 3 .* 16/);
      await expect(adapt(model, compacter(), { at: 'q_proj' })).rejects.toThrow(/q_proj/);
      expect(() => compacter({ rank: 0 })).toThrow(/rank/);
      expect(siteParameters(model).every(({ trainable }) => trainable)).toBe(true);
      expect(memory().numTensors).toBe(before);
    }));
});
