import { describe, expect, it } from 'vitest';
import {
  ConfigError,
  createDraw,
  gradientsOf,
  mul,
  openMemoryLedger,
  recordTape,
  swiglu,
  tensor2d,
  tidy,
  withAdapters,
  type Parameter,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import { causalLM, createStep } from '@niwaki/engine';
import { permuteUnits, type Model, type Site } from '@niwaki/nn';
import { adamw } from '@niwaki/optim';
import { createCall, encodeGgufBlocks, ggufBlock, rowsOf, type Call } from '@niwaki/weights';
import { bytesOf, cloned, distance, logits, siteParameters, sizeOf, trainable } from '../../testing/src/contract-model.ts';
import { outlineLlama, sevenBillion } from '../../testing/src/outline-llama.ts';
import { perturb } from '../../testing/src/perturb.ts';
import { baseOf } from '../../testing/src/site-gradient.ts';
import { tinyThings } from '../../testing/src/tiny-things.ts';
import { adapterFiles as lowrankFiles, lora } from '../../lowrank/src/index.ts';
import { activateAdapters, adapt, deleteAdapter, mergeAdapter, setAdapterScale, unmergeAdapter } from '@niwaki/peft';
import { s2ft, slicesOf, type S2ftAdapter, type S2ftOptions } from '../src/index.ts';
import { verbs } from './verbs.ts';
import { memoryFolderSink } from '../../hub/src/index.ts';

const { things, tiny, batchOf } = tinyThings();

const siteAt = (model: Model, path: string): Site => model.sites(path)[0]!;
const valuesOf = async (parameter: Parameter): Promise<Float32Array> => (await parameter.read().data()) as Float32Array;

const columns = ['o_proj', 'down_proj'];
const half: S2ftOptions = { outputRatio: 0.5, downRatio: 0.25 };
/** Units that would train, and numbers in their slices. */
async function budget(
  model: Model,
  options: S2ftOptions,
  at: readonly string[],
): Promise<{ units: Record<string, number>; trained: number }> {
  const sites = model.sites(at);
  const plan = await s2ft(options).plan!(sites, model);
  const chosen = plan['chosen'] as Record<string, readonly number[]>;
  const sides = plan['sides'] as ReadonlyMap<Site, { size: number; axis: string }>;
  const units: Record<string, number> = {};
  let trained = 0;
  for (const site of sites) {
    const own = chosen[site.path]?.length ?? 0;
    const name = site.path.slice(site.path.lastIndexOf('.') + 1);
    units[name] = (units[name] ?? 0) + own;
    const { size, axis } = sides.get(site)!;
    trained += own * size * site.weight!.shape[axis === 'columns' ? 0 : 1];
  }
  return { units, trained };
}

describe('the budget of S²FT', () => {
  it('is counted over the whole model: Llama-2-7B trains 53 heads and 7045 channels', async () => {
    const found = await budget(outlineLlama(sevenBillion), { outputRatio: 0.052, downRatio: 0.02 }, columns);
    expect(found).toEqual({ units: { o_proj: 53, down_proj: 7045 }, trained: 27_787_264 + 28_856_320 });
    expect((found.trained / 6_738_415_616).toFixed(6)).toBe('0.008406');
  });

  it('is 13762 channels of Llama-3-8B', async () => {
    const model = outlineLlama({ ...sevenBillion, intermediate_size: 14_336, num_key_value_heads: 8, vocab_size: 128_256 });
    expect(await budget(model, { downRatio: 0.03 }, ['down_proj'])).toEqual({ units: { down_proj: 13_762 }, trained: 56_369_152 });
    // Values count in kv heads: 8 a layer.
    const values = await budget(model, { valueRatio: 0.1, upRatio: 0.01 }, ['v_proj', 'up_proj']);
    expect(values.units).toEqual({ v_proj: 25, up_proj: 4587 });
    expect(values.trained).toBe((25 * 128 + 4587) * 4096);
  });

  it('gives layers different numbers, and the same ones for the same seed', async () => {
    const model = await tiny({ num_hidden_layers: 4 });
    const draw = async (seed: number): Promise<[Record<string, readonly number[]>, number]> => {
      const set = await adapt(model, s2ft({ outputRatio: 0.25, downRatio: 0.1 }), { at: columns, seed, name: `s${seed}` });
      const slices = slicesOf(set);
      deleteAdapter(model, set.name);
      return [slices, set.sites.size];
    };
    const [first, sites] = await draw(2);
    expect(await draw(2)).toEqual([first, sites]);
    expect((await draw(3))[0]).not.toEqual(first);
    const heads = Object.entries(first).filter(([path]) => path.endsWith('o_proj'));
    expect(heads.reduce((sum, [, { length }]) => sum + length, 0)).toBe(4);
    expect(new Set(Object.values(first).map(({ length }) => length)).size).toBeGreaterThan(1);
  });
});

/** A gated MLP of 2 and 4, by the numbers of the paper's algebra. */
async function smallMlp(): Promise<{ model: Model; x: Tensor2D; hidden(): Tensor2D; output(): Tensor2D; down: Site }> {
  const model = await tiny({ hidden_size: 2, intermediate_size: 4, num_attention_heads: 1, num_key_value_heads: 1, head_dim: 2 });
  const write = (name: string, values: number[][]): Site => {
    const site = siteAt(model, `model.layers.0.mlp.${name}`);
    site.weight!.matrix!.write(tensor2d(values));
    return site;
  };
  const up = write('up_proj', [[1, 0], [0, 1], [1, 1], [1, -1]]); // prettier-ignore
  const gate = write('gate_proj', [[0.5, 0], [0, 0.5], [1, 0], [0, 1]]); // prettier-ignore
  const down = write('down_proj', [[1, 2, 3, 4], [0, 1, 0, -1]]); // prettier-ignore
  const x = tensor2d([[1, 2]]);
  things.push(x);
  const call = createCall({ batch: {} });
  const hidden = (): Tensor2D => tidy(() => swiglu(gate.weight!.apply(x, call), up.weight!.apply(x, call)));
  const output = (): Tensor2D => tidy(() => down.weight!.apply(hidden(), call));
  return { model, x, hidden, output, down };
}

async function read(tensor: Tensor): Promise<number[]> {
  const values = Array.from(await tensor.data());
  tensor.dispose();
  return values;
}

const expectClose = (given: ArrayLike<number>, expected: readonly number[], digits = 6): void => {
  expect(given.length).toBe(expected.length);
  for (const [i, value] of expected.entries()) expect(given[i]).toBeCloseTo(value, digits);
};

describe('a gated MLP of four channels', () => {
  it('gives the same in another order of its channels', async () => {
    const { model, hidden, output } = await smallMlp();
    expectClose(await read(hidden()), [0.31122967, 1.46211716, 2.19317574, -1.76159416]);
    const before = await read(output());
    expectClose(before, [2.76861456, 3.22371131]);
    const channels = model.couplings.find(({ kind }) => kind === 'channels')!;
    await permuteUnits(model, channels, [2, 0, 1, 3]);
    expectClose(await read(hidden()), [2.19317574, 0.31122967, 1.46211716, -1.76159416]);
    expectClose(await read(output()), before);
  });

  it('trains a column with the gradient that the whole matrix would have there', async () => {
    const { model, hidden, down } = await smallMlp();
    const set = await adapt(model, s2ft({ slices: { [down.path]: [2] } }), { at: down.path });
    const adapter = set.sites.get(down.path)!;
    const [v, w] = [adapter.parameters['s2ft_V']!, down.weight!.matrix!];
    const [input, dy] = [hidden(), tensor2d([[1, -1]])];
    const gradientOf = (parameter: Parameter): Tensor => {
      const call = createCall({ batch: {}, watched: new Map([[parameter, parameter.read()]]) });
      const run = (): Tensor2D => adapter.apply(input, (x) => baseOf(down, x, call), call, down);
      const { value, gradients } = gradientsOf(run, [parameter.read()], (of) => [{ of, value: dy }]);
      value.dispose();
      return gradients[0]!;
    };
    expectClose(await read(gradientOf(v)), [2.19317574, -2.19317574]);
    const whole = await read(gradientOf(w));
    expectClose([whole[2]!, whole[6]!], [2.19317574, -2.19317574]);
    input.dispose();
    dy.dispose();
  });
});

async function trained(model: Model, steps: number, { weightDecay = 0 }: { weightDecay?: number } = {}): Promise<void> {
  const step = createStep({ model, objective: causalLM(), optimizer: adamw({ learningRate: 1, weightDecay }) });
  const batch = batchOf();
  for (let attempt = 0; attempt < steps; attempt++)
    await step.run({ batches: [batch], attempt, rate: 0.02, progress: 0, draw: createDraw(1, attempt) });
  step.dispose();
}

describe('training slices', () => {
  it('starts at exactly the base, and leaves every entry outside of them as it was, decay or not', async () => {
    const model = await tiny();
    const base = await logits(model);
    const before = new Map<string, Float32Array>();
    for (const { path, weight } of model.sites('all-linear')) before.set(path, (await valuesOf(weight!.matrix!)).slice());
    const set = await adapt(model, s2ft({ ...half, valueRatio: 0.5, upRatio: 0.1 }), { at: [...columns, 'v_proj', 'up_proj'] });
    expect(await logits(model)).toEqual(base);
    await trained(model, 5, { weightDecay: 0.1 });
    const unmerged = await logits(model);
    expect(distance(unmerged, base)).toBeGreaterThan(0.05);
    await mergeAdapter(model);
    expect(distance(await logits(model), unmerged)).toBeLessThan(1e-5);
    for (const { path, weight } of model.sites('all-linear')) {
      const [was, is] = [before.get(path)!, await valuesOf(weight!.matrix!)];
      const [, width] = weight!.shape;
      const { units = [], parameters } = (set.sites.get(path) ?? { parameters: {} }) as Partial<S2ftAdapter> &
        Pick<S2ftAdapter, 'parameters'>;
      const size = path.includes('self_attn') ? 4 : 1;
      const byColumn = columns.some((name) => path.endsWith(name));
      const inside = (e: number): boolean => units.includes(Math.floor((byColumn ? e % width : Math.floor(e / width)) / size));
      const changed = is.reduce((count, value, e) => count + (Object.is(value, was[e]) ? 0 : 1), 0);
      is.forEach((value, e) => {
        if (!inside(e) && !Object.is(value, was[e])) throw new Error(`${path} changed outside of its slices, at ${e}`);
      });
      expect(changed).toBe(parameters['s2ft_V'] === undefined ? 0 : sizeOf(parameters['s2ft_V'].shape));
    }
    await unmergeAdapter(model);
  });

  it('takes 4 bytes a number of V, 4 of gradient and 8 of AdamW state, and the places; nothing for what is frozen', async () => {
    const model = await tiny();
    const ledger = openMemoryLedger();
    const before = ledger.bytes();
    const at = [...columns, 'v_proj', 'up_proj'];
    const set = await adapt(model, s2ft({ ...half, valueRatio: 0.5, upRatio: 0.1, strategy: 'weight' }), { at });
    const p = trainable(model).reduce((sum, { shape }) => sum + sizeOf(shape), 0);
    // Two layers: 4 of 8 heads, 16 of 64 channels, 2 of 4 kv heads, 6 of 64 channels.
    expect(p).toBe(4 * 4 * 16 + 16 * 16 + 2 * 4 * 16 + 6 * 16);
    const places = [...set.sites.values()].reduce(
      (sum, { parameters }) =>
        sum + Object.values(parameters).reduce((own, { role, shape }) => own + (role === 'index' ? shape[0]! : 0), 0),
      0,
    );
    expect(places).toBeGreaterThan(0);
    expect(ledger.bytes() - before).toBe(4 * p + 4 * places);
    const step = createStep({ model, objective: causalLM(), optimizer: adamw({ learningRate: 1 }) });
    expect(step.plan.peakBytes).toBe(4 * p);
    expect(step.stateBytes()).toBe(8 * p);
    step.dispose();
    deleteAdapter(model, set.name);
    expect(ledger.bytes()).toBe(before);
    ledger.dispose();
  });

  it('keeps the selected columns of an input for the backward pass, and not the input', async () => {
    const model = await tiny({ intermediate_size: 64 });
    const down = siteAt(model, 'model.layers.0.mlp.down_proj');
    const { path } = down;
    /** Bytes that are alive for the backward pass alone, once nobody else holds the input [10, 64]. */
    const kept = (trains: Parameter, run: (x: Tensor2D, call: Call) => Tensor2D): number => {
      const call = createCall({ batch: {}, watched: new Map([[trains, trains.read()]]), training: true });
      const ledger = openMemoryLedger();
      const before = ledger.bytes();
      const x = tensor2d(new Float32Array(10 * 64).fill(1), [10, 64]);
      const tape = recordTape(() => run(x, call));
      x.dispose();
      tape.value.dispose();
      const bytes = ledger.bytes() - before;
      tape.dispose();
      ledger.dispose();
      return bytes;
    };
    for (const units of [
      [3, 40, 9],
      [5, 6, 7],
    ]) {
      const set = await adapt(model, s2ft({ slices: { [path]: units } }), { at: path });
      const adapter = set.sites.get(path)!;
      const run = (x: Tensor2D, call: Call): Tensor2D => adapter.apply(x, (input) => baseOf(down, input, call), call, down);
      expect(kept(adapter.parameters['s2ft_V']!, run)).toBe(4 * 10 * 3);
      expect(kept(down.weight!.matrix!, (x, call) => down.weight!.apply(x, call))).toBe(4 * 10 * 64);
      deleteAdapter(model, set.name);
    }
  });

  it('finds the same again where it was stopped', async () => {
    const run = async (stop: boolean): Promise<Map<string, string>> => {
      const model = await tiny();
      await adapt(model, s2ft(half), { at: columns, seed: 3 });
      const batch = batchOf();
      const stepOf = () => createStep({ model, objective: causalLM(), optimizer: adamw({ learningRate: 1, weightDecay: 0.1 }) });
      let step = stepOf();
      for (let attempt = 0; attempt < 6; attempt++) {
        if (stop && attempt === 3) {
          const next = stepOf();
          next.restore(new Map([...step.state()].map(([path, state]) => [path, cloned(state)])), step.updates());
          step.dispose();
          step = next;
        }
        await step.run({ batches: [batch], attempt, rate: 0.02, progress: 0, draw: createDraw(1, attempt) });
      }
      step.dispose();
      return bytesOf(trainable(model));
    };
    expect(await run(true)).toEqual(await run(false));
  });
});

describe('permuting before training', () => {
  const variants: [string, Record<string, unknown>][] = [
    ['4 heads on 4, with biases', { num_key_value_heads: 4, attention_bias: true, mlp_bias: true }],
    ['8 heads on 2', { num_attention_heads: 8, num_key_value_heads: 2 }],
  ];
  const at = [...columns, 'v_proj', 'up_proj'];
  const options: S2ftOptions = { outputRatio: 0.4, downRatio: 0.25, valueRatio: 0.5, upRatio: 0.2 };

  it.each(variants)('changes no output (%s), puts channels next to one another, and finds the same adapter', async (_, config) => {
    const [plain, permuted] = [await tiny(config), await tiny(config)];
    const base = await logits(plain);
    const one = await adapt(plain, s2ft(options), { at, seed: 5 });
    const two = await adapt(permuted, s2ft({ ...options, permute: true }), { at, seed: 5 });
    expect(distance(await logits(permuted), base)).toBeLessThan(1e-5);
    expect(permuted.couplings.some(({ order }) => order !== undefined)).toBe(true);
    for (const [path, adapter] of two.sites) {
      const whole = path.includes('mlp') || config['num_key_value_heads'] === 4;
      expect(whole && Object.keys(adapter.parameters).length > 1).toBe(false);
      const sorted = (units: readonly number[]): readonly number[] => [...units].sort((a, b) => a - b);
      expect(sorted((adapter as S2ftAdapter).units)).toEqual((one.sites.get(path) as S2ftAdapter).units);
    }
    await trained(plain, 4);
    await trained(permuted, 4);
    expect(distance(await logits(plain), base)).toBeGreaterThan(0.05);
    expect(distance(await logits(permuted), await logits(plain))).toBeLessThan(1e-4);
  });

  it.each(variants)('exports what fits a base that was not permuted (%s), and one that was', async (_, config) => {
    const permuted = await tiny(config);
    const set = await adapt(permuted, s2ft({ ...options, permute: true }), { at, seed: 5 });
    await trained(permuted, 4);
    const sink = memoryFolderSink();
    await verbs.save(set, sink);
    const expected = await logits(permuted);
    const plain = await tiny(config);
    await verbs.load(plain, sink.files, {});
    expect(distance(await logits(plain), expected)).toBeLessThan(1e-5);
    deleteAdapter(permuted, set.name);
    await verbs.load(permuted, sink.files, { name: 'again' });
    expect(await logits(permuted)).toEqual(expected);
  });

  it('twice moves from where the first left off', async () => {
    const model = await tiny({ num_key_value_heads: 4 });
    const base = await logits(model);
    const path = 'model.layers.0.self_attn.o_proj';
    for (const [name, units] of Object.entries({ a: [3], b: [0, 2] })) {
      const set = await adapt(model, s2ft({ slices: { [path]: units }, permute: true }), { at: path, name });
      expect(Object.keys(set.sites.get(path)!.parameters)).toEqual(['s2ft_V']);
      expect(distance(await logits(model), base)).toBeLessThan(1e-5);
      deleteAdapter(model, name);
    }
  });

  it('is kept from what would not notice: originals of a merge, and files of adapters that count rows', async () => {
    const model = await tiny();
    const path = 'model.layers.0.mlp.down_proj';
    const set = await adapt(model, lora({ rank: 2 }), { at: path, name: 'low' });
    const sink = memoryFolderSink();
    await verbs.save(set, sink);
    await mergeAdapter(model, 'low');
    const permuting = { slices: { [path]: [9, 3] }, permute: true };
    await expect(adapt(model, s2ft(permuting), { at: path })).rejects.toThrow(/adapters are merged \(low\)/);
    await unmergeAdapter(model);
    deleteAdapter(model, 'low');
    await adapt(model, s2ft(permuting), { at: path });
    await expect(verbs.load(model, sink.files, { name: 'low', types: lowrankFiles })).rejects.toThrow(
      /down_proj' were permuted on this model/,
    );
  });

  it('is refused by codes and by adapters that stand on the order, and the model stays', async () => {
    const model = await tiny({ hidden_size: 32, head_dim: 8 });
    await adapt(model, s2ft(half), { at: columns, name: 'first' });
    const before = await bytesOf(model.parameters().values());
    await expect(adapt(model, s2ft({ ...half, permute: true }), { at: columns, name: 'second' })).rejects.toThrow(/'first'.*order of now/);
    expect(await bytesOf(model.parameters().values())).toEqual(before);
    deleteAdapter(model, 'first');
    for (const { path, weight } of model.sites('all-linear'))
      model.replace(path, ggufBlock(path, weight!.shape, 'Q8_0', await encodeGgufBlocks(path, weight!.shape, rowsOf(weight!), 'Q8_0')));
    await expect(adapt(model, s2ft({ ...half, permute: true }), { at: columns })).rejects.toThrow(/codes/);
  });
});

describe('several adapters', () => {
  const random: S2ftOptions = { outputRatio: 0.5, downRatio: 0.4 };

  it('on disjoint slices add up to exactly both, and leave exactly the other', async () => {
    const model = await tiny();
    const base = await bytesOf(siteParameters(model));
    const a = await adapt(model, s2ft(random), { at: columns, name: 'a', seed: 1 });
    perturb(a, 1);
    const b = await adapt(model, s2ft({ ...random, exclude: slicesOf(a) }), { at: columns, name: 'b', seed: 2 });
    for (const [path, units] of Object.entries(slicesOf(a))) {
      const other = slicesOf(b)[path] ?? [];
      expect(units.filter((unit) => other.includes(unit))).toEqual([]);
    }
    perturb(b, 2);
    const alone = await logits(model, withAdapters(['b']));
    activateAdapters(model, ['a', 'b']);
    expect(distance(await logits(model), alone)).toBeGreaterThan(1e-3);
    // In the weights: both slices hold what each adapter alone puts there, and what the first put is gone with it.
    await mergeAdapter(model, ['a']);
    const onlyA = new Map(
      await Promise.all(siteParameters(model).map(async (parameter) => [parameter.path, await valuesOf(parameter)] as const)),
    );
    await mergeAdapter(model, ['b']);
    await unmergeAdapter(model, 'a');
    const onlyB = new Map(
      await Promise.all(siteParameters(model).map(async (parameter) => [parameter.path, await valuesOf(parameter)] as const)),
    );
    expect(distance(await logits(model, withAdapters([])), alone)).toBeLessThan(1e-5);
    await unmergeAdapter(model);
    const w = new Map(
      await Promise.all(siteParameters(model).map(async (parameter) => [parameter.path, await valuesOf(parameter)] as const)),
    );
    activateAdapters(model, ['a', 'b']);
    await mergeAdapter(model);
    for (const parameter of siteParameters(model)) {
      const [was, one, two, both] = [
        w.get(parameter.path)!,
        onlyA.get(parameter.path)!,
        onlyB.get(parameter.path)!,
        await valuesOf(parameter),
      ];
      both.forEach((value, e) => {
        const expected = one[e] !== was[e] ? one[e] : two[e];
        if (value !== expected) throw new Error(`${parameter.path}[${e}] is ${value}, not ${expected}`);
      });
    }
    await unmergeAdapter(model);
    expect(await bytesOf(siteParameters(model))).toEqual(base);
    deleteAdapter(model, 'a');
    expect(await logits(model)).toEqual(alone);
  });

  it('are turned up and down', async () => {
    const model = await tiny();
    const base = await logits(model);
    const set = await adapt(model, s2ft(random), { at: 'down_proj' });
    perturb(set, 1);
    const delta = async (): Promise<Float32Array> => {
      const { weight } = siteAt(model, 'model.layers.0.mlp.down_proj');
      const added = set.sites.get('model.layers.0.mlp.down_proj')!.delta!().dense();
      const values = (await added.data()) as Float32Array;
      expect(added.shape).toEqual(weight!.shape);
      added.dispose();
      return values;
    };
    const once = await delta();
    setAdapterScale(model, set.name, 0.5);
    expect(await delta()).toEqual(once.map((value) => value / 2));
    setAdapterScale(model, set.name, 0);
    expect(distance(await logits(model), base)).toBe(0);
  });
});

describe('the choice of slices', () => {
  const layer = (i: number, name: string): string => `model.layers.${i}.${name}`;
  const scale = (model: Model, path: string, which: readonly number[], { axis, by }: { axis: 'rows' | 'columns'; by: number }): void => {
    const { weight } = siteAt(model, path);
    const [out, width] = weight!.shape;
    const factors = tensor2d(
      Float32Array.from({ length: out * width }, (_, e) => (which.includes(axis === 'rows' ? Math.floor(e / width) : e % width) ? by : 1)),
      [out, width],
    );
    weight!.matrix!.write(tidy(() => mul(weight!.matrix!.read(), factors)));
    factors.dispose();
  };
  const choose = async (model: Model, options: S2ftOptions, at: readonly string[]): Promise<Record<string, readonly number[]>> => {
    const set = await adapt(model, s2ft(options), { at });
    const slices = slicesOf(set);
    deleteAdapter(model, set.name);
    return slices;
  };

  it('by weights is by the sum of |w| over a unit, over all layers', async () => {
    const model = await tiny();
    scale(model, layer(0, 'mlp.down_proj'), [3, 31], { axis: 'columns', by: 1e-3 });
    scale(model, layer(1, 'mlp.down_proj'), [8], { axis: 'columns', by: 1e-3 });
    scale(model, layer(1, 'self_attn.o_proj'), [4, 5, 6, 7], { axis: 'columns', by: 100 });
    scale(model, layer(0, 'self_attn.v_proj'), [4, 5, 6, 7], { axis: 'rows', by: 1e-3 });
    expect(await choose(model, { strategy: 'weight', downRatio: 3 / 64 }, ['down_proj'])).toEqual({
      [layer(0, 'mlp.down_proj')]: [3, 31],
      [layer(1, 'mlp.down_proj')]: [8],
    });
    expect(await choose(model, { strategy: 'weight', pick: 'largest', outputRatio: 1 / 8 }, ['o_proj'])).toEqual({
      [layer(1, 'self_attn.o_proj')]: [1],
    });
    expect(await choose(model, { strategy: 'weight', valueRatio: 0.25 }, ['v_proj'])).toEqual({ [layer(0, 'self_attn.v_proj')]: [1] });
  });

  it.each(['activation', 'weight*activation', 'gradient'] as const)('by %s sees what the batches leave quiet or loud', async (strategy) => {
    const model = await tiny();
    const batches = [batchOf(), batchOf([[7, 3, 9]])];
    scale(model, layer(1, 'mlp.up_proj'), [3, 21], { axis: 'rows', by: 0 });
    // The second kv head gives the third and fourth query head their values.
    scale(model, layer(0, 'self_attn.v_proj'), [4, 5, 6, 7], { axis: 'rows', by: 0 });
    expect(await choose(model, { strategy, batches, outputRatio: 0.25, downRatio: 2 / 64 }, columns)).toEqual({
      [layer(0, 'self_attn.o_proj')]: [2, 3],
      [layer(1, 'mlp.down_proj')]: [3, 21],
    });
    scale(model, layer(0, 'mlp.up_proj'), [30], { axis: 'rows', by: 1000 });
    expect(await choose(model, { strategy, batches, pick: 'largest', downRatio: 1 / 64 }, ['down_proj'])).toEqual({
      [layer(0, 'mlp.down_proj')]: [30],
    });
    if (strategy === 'gradient') return;
    expect(await choose(model, { strategy, batches, valueRatio: 0.25 }, ['v_proj'])).toEqual({ [layer(0, 'self_attn.v_proj')]: [1] });
  });

  it.each(['weight', 'activation', 'gradient'] as const)('by %s is the same on a model whose units have moved', async (strategy) => {
    const config = { num_attention_heads: 8, num_key_value_heads: 2 };
    const [plain, moved] = [await tiny(config), await tiny(config)];
    const options: S2ftOptions = { strategy, batches: [batchOf()], outputRatio: 0.2, downRatio: 0.1, valueRatio: 0.5, upRatio: 0.1 };
    const at = [...columns, 'v_proj', 'up_proj'];
    const expected = await choose(plain, options, at);
    await choose(moved, { outputRatio: 0.5, downRatio: 0.5, permute: true }, columns);
    expect(moved.couplings.some(({ order }) => order !== undefined)).toBe(true);
    const sorted = (slices: Record<string, readonly number[]>): Record<string, readonly number[]> =>
      Object.fromEntries(Object.entries(slices).map(([path, units]) => [path, [...units].sort((a, b) => a - b)]));
    expect(sorted(await choose(moved, options, at))).toEqual(sorted(expected));
  });

  it('by gradients needs float weights; by activations it does not', async () => {
    const model = await tiny({ hidden_size: 32, head_dim: 8 });
    for (const { path, weight } of model.sites('all-linear'))
      model.replace(path, ggufBlock(path, weight!.shape, 'Q4_0', await encodeGgufBlocks(path, weight!.shape, rowsOf(weight!), 'Q4_0')));
    const batches = [batchOf()];
    await expect(choose(model, { strategy: 'gradient', batches }, ['down_proj'])).rejects.toThrow(/needs float weights/);
    const slices = await choose(model, { strategy: 'activation', batches, downRatio: 0.1 }, ['down_proj']);
    expect(Object.values(slices).flat().length).toBe(6);
  });
});

it('trains 5.2 % of the heads and 2 % of the channels, drawn at random, where nothing is said', () => {
  expect(JSON.parse(JSON.stringify(s2ft()))).toEqual({
    kind: 's2ft',
    options: { outputRatio: 0.052, valueRatio: 0, downRatio: 0.02, upRatio: 0, strategy: 'random', pick: 'smallest', permute: false },
  });
});

describe('what S²FT refuses', () => {
  const message = async (promise: Promise<unknown>): Promise<string> =>
    promise.then(
      () => 'nothing was refused',
      (error: unknown) => (ConfigError.isInstance(error) ? error.message : `another error: ${String(error)}`),
    );

  it('names the field, the value and the range', () => {
    for (const field of ['outputRatio', 'valueRatio', 'downRatio', 'upRatio']) {
      expect(() => s2ft({ [field]: 1.5 })).toThrow(new RegExp(`${field} must be from 0 to 1, got 1.5`));
      expect(() => s2ft({ [field]: Number.NaN })).toThrow(/got NaN/);
    }
    expect(() => s2ft({ outputRatio: 0, downRatio: 0 })).toThrow(/nothing trainable/);
    expect(() => s2ft({ strategy: 'loud' as never })).toThrow(/strategy must be one of random, weight/);
    expect(() => s2ft({ pick: 'middle' as never })).toThrow(/pick must be/);
    expect(() => s2ft({ permute: 1 as never })).toThrow(/permute must be/);
    expect(() => s2ft({ strategy: 'activation' })).toThrow(/needs batches/);
  });

  it('says which maps have heads or channels', async () => {
    const model = await tiny();
    expect(await message(adapt(model, s2ft(), { at: 'q_proj' }))).toMatch(/q_proj' has no heads or channels/);
    expect(await message(adapt(model, s2ft(), { at: ['down_proj', 'gate_proj'] }))).toMatch(/v_proj, o_proj, up_proj, down_proj/);
    const bare: Model = { ...model, couplings: [] };
    expect(await message(adapt(bare, s2ft(), { at: 'o_proj' }))).toMatch(/does not say what its maps share/);
  });

  it('does not let a selected kind of map go without a slice', async () => {
    const model = await tiny();
    expect(await message(adapt(model, s2ft({ downRatio: 0.5 }), { at: columns }))).toMatch(
      /outputRatio 0.052 of 8 is less than one[^]*outputRatio >= 0.125/,
    );
    expect(await message(adapt(model, s2ft({ downRatio: 0.5 }), { at: ['down_proj', 'up_proj'] }))).toMatch(/upRatio 0 of 64/);
    const exclude = { 'model.layers.0.mlp.down_proj': [...Array(32).keys()] };
    expect(await message(adapt(model, s2ft({ downRatio: 0.6, exclude }), { at: 'down_proj' }))).toMatch(
      /takes 38 of 64, and 'exclude' leaves 32/,
    );
    expect(model.adapters.size).toBe(0);
  });

  it('checks units that are named', async () => {
    const model = await tiny();
    const path = 'model.layers.0.self_attn.v_proj';
    for (const units of [[2], [0, 0], [-1], []])
      expect(await message(adapt(model, s2ft({ slices: { [path]: units } }), { at: path }))).toMatch(/distinct heads from 0 to 1/);
    expect(await message(adapt(model, s2ft({ slices: { [path]: [0] } }), { at: 'v_proj' }))).toMatch(/names nothing of 'model.layers.1/);
  });

  it('is read from no file that lists something else', async () => {
    const model = await tiny();
    const set = await adapt(model, s2ft({ slices: { 'model.layers.0.mlp.down_proj': [1, 2] } }), { at: 'model.layers.0.mlp.down_proj' });
    const sink = memoryFolderSink();
    await verbs.save(set, sink);
    deleteAdapter(model, set.name);
    const config = JSON.parse(new TextDecoder().decode(sink.files.get('adapter_config.json'))) as Record<string, unknown>;
    const changed = (slices: unknown): Map<string, Uint8Array> =>
      new Map(sink.files).set('adapter_config.json', new TextEncoder().encode(JSON.stringify({ ...config, slices })));
    expect(config['peft_type']).toBe('S2FT');
    await expect(verbs.load(model, changed(7), {})).rejects.toThrow(/slices: Invalid type/);
    await expect(verbs.load(model, changed({ 'model.layers.0.mlp.down_proj': [1, 2, 3] }), {})).rejects.toThrow(/\[16,3\]|16, ?3/);
    await expect(verbs.load(model, changed({ 'model.layers.0.mlp.down_proj': [1, 32] }), {})).rejects.toThrow(/channels from 0 to 31/);
    expect(model.adapters.size).toBe(0);
  });
});
