import { describe, expect, it } from 'vitest';
import {
  add,
  createDraw,
  openMemoryLedger,
  plainView,
  recordTape,
  scalar,
  tensor2d,
  tidy,
  zeros,
  type Parameter,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import { blockwiseBackprop, causalLM, createStep } from '@niwaki/engine';
import type { AdapterSet, Model, Site } from '@niwaki/nn';
import { adamw } from '@niwaki/optim';
import { createCall, encodeGgufBlocks, ggufBlock, rowsOf, type TrainedSlice } from '@niwaki/weights';
import { memoryFolderSink } from '../../hub/src/index.ts';
import { bytesOf, distance, logits, siteParameters, sizeOf, trainable } from '../../testing/src/contract-model.ts';
import { perturb } from '../../testing/src/perturb.ts';
import { tinyThings } from '../../testing/src/tiny-things.ts';
import { adapt, deleteAdapter, mergeAdapter, setAdapterScale, unmergeAdapter } from '@niwaki/peft';
import { lora } from '../../lowrank/src/index.ts';
import { magnitude, prune, s2ft, slicesOf, type S2ftAdapter, type S2ftOptions } from '../src/index.ts';
import { verbs } from './verbs.ts';

const { tiny, batchOf } = tinyThings();

const siteAt = (model: Model, path: string): Site => model.sites(path)[0]!;
const heldAt = (model: Model, path: string): TrainedSlice => siteAt(model, path).weight as TrainedSlice;

async function valuesOf(tensor: Tensor): Promise<Float32Array> {
  const values = ((await tensor.data()) as Float32Array).slice();
  tensor.dispose();
  return values;
}

/** The matrix of a site as it multiplies now. */
const matrixOf = (model: Model, path: string): Promise<Float32Array> => {
  const weight = siteAt(model, path).weight!;
  return valuesOf(weight.kind === 'trained-slice' ? (weight as TrainedSlice).now() : weight.dense());
};

const at = ['o_proj', 'down_proj', 'v_proj', 'up_proj'];
const all: S2ftOptions = { outputRatio: 0.5, downRatio: 0.25, valueRatio: 0.5, upRatio: 0.2 };

async function trained(model: Model, steps: number, weightDecay = 0): Promise<number[]> {
  const step = createStep({ model, objective: causalLM(), optimizer: adamw({ learningRate: 1, weightDecay }) });
  const batch = batchOf();
  const losses: number[] = [];
  for (let attempt = 0; attempt < steps; attempt++) {
    const { loss } = await step.run({ batches: [batch], attempt, rate: 0.02, progress: 0, draw: createDraw(1, attempt) });
    losses.push(loss);
  }
  step.dispose();
  return losses;
}

/** Whether an entry of a site's matrix lies in its slice; of a model that is not permuted. */
function insideOf(model: Model, set: AdapterSet, path: string): (entry: number) => boolean {
  const [, width] = siteAt(model, path).weight!.shape;
  const { units } = set.sites.get(path) as S2ftAdapter;
  const columns = ['o_proj', 'down_proj'].some((name) => path.endsWith(name));
  const size = path.includes('self_attn') ? 4 : 1;
  return (entry) => units.includes(Math.floor((columns ? entry % width : Math.floor(entry / width)) / size));
}

describe('slices in place', () => {
  const variants: [string, Record<string, unknown>, S2ftOptions][] = [
    ['gathered', {}, all],
    ['8 heads on 2, permuted', { num_attention_heads: 8, num_key_value_heads: 2 }, { ...all, permute: true }],
    ['with biases', { attention_bias: true, mlp_bias: true }, all],
  ];

  it.each(variants)('train as they do beside the matrix, step by step: %s', async (_, config, options) => {
    const [beside, inside] = [await tiny(config), await tiny(config)];
    await adapt(beside, s2ft(options), { at, seed: 3 });
    await adapt(inside, s2ft({ ...options, inPlace: true }), { at, seed: 3 });
    const [expected, given] = [await trained(beside, 8), await trained(inside, 8)];
    expect(expected.at(-1)).toBeLessThan(expected[0]! - 0.3);
    // The added product is rounded by itself beside the matrix.
    for (const [i, loss] of given.entries()) expect(Math.abs(loss - expected[i]!)).toBeLessThan(1e-5);
    expect(distance(await logits(inside), await logits(beside))).toBeLessThan(1e-4);
  });

  it('leave every entry outside as it was, decay or not, and decay only what is inside', async () => {
    const model = await tiny();
    const before = new Map<string, Float32Array>();
    for (const { path } of model.sites('all-linear')) before.set(path, await matrixOf(model, path));
    const set = await adapt(model, s2ft({ ...all, strategy: 'weight', inPlace: true }), { at });
    await trained(model, 5, 0.5);
    for (const [path, was] of before) {
      const is = await matrixOf(model, path);
      const inside = set.sites.has(path) ? insideOf(model, set, path) : () => false;
      const changed = [...is.keys()].filter((e) => !Object.is(is[e], was[e]));
      expect([path, changed.filter((e) => !inside(e))]).toEqual([path, []]);
      expect(changed.length).toBe([...is.keys()].filter(inside).length);
    }
    // What trains is what lies in the matrix, and what is kept is what lay there.
    for (const path of set.sites.keys()) {
      const inside = insideOf(model, set, path);
      const { slice, initial } = heldAt(model, path);
      const is = await matrixOf(model, path);
      expect(await slice.read().data()).toEqual(is.filter((_, e) => inside(e)));
      expect(await initial.read().data()).toEqual(before.get(path)!.filter((_, e) => inside(e)));
    }
  });

  it('decay as the stored numbers do: with no gradient they shrink by the rate', async () => {
    const model = await tiny();
    const path = 'model.layers.0.mlp.down_proj';
    await adapt(model, s2ft({ slices: { [path]: [2, 9] }, inPlace: true }), { at: path });
    const { slice, initial } = heldAt(model, path);
    const [update, ok] = [zeros([16, 2]), scalar(1)];
    slice.commit({ kind: 'dense', value: update }, ok, { decay: 0.25 });
    const [was, is] = [await initial.read().data(), await slice.read().data()];
    expect([...is]).toEqual([...was].map((value) => Math.fround(value * 0.75)));
    const refused = scalar(0);
    const bytes = await bytesOf(model.parameters().values());
    slice.commit({ kind: 'dense', value: update }, refused, { decay: 0.25 });
    expect(await bytesOf(model.parameters().values())).toEqual(bytes);
    for (const tensor of [update, ok, refused]) tensor.dispose();
  });

  it('have the gradient of the whole matrix at their place', async () => {
    const model = await tiny();
    const slices = { 'model.layers.0.mlp.down_proj': [2, 17], 'model.layers.1.mlp.up_proj': [30, 1] };
    const gradientsFor = async (wrt: readonly Parameter[]): Promise<Map<Parameter, Float32Array>> => {
      const found = new Map<Parameter, Float32Array>();
      const reads: Promise<void>[] = [];
      const estimated = await blockwiseBackprop().estimate(
        {
          model,
          objective: causalLM(),
          batch: batchOf(),
          wrt: new Set(wrt),
          view: plainView,
          at: { attempt: 0, phaseStep: 0, micro: 0, pass: 0 },
          draw: createDraw(0, 0),
          scale: 1,
        },
        {
          push: (parameter, gradient) => {
            if (gradient.kind !== 'dense') throw new Error('a dense gradient');
            reads.push(valuesOf(gradient.value).then((values) => void found.set(parameter, values)));
          },
        },
      );
      estimated.dispose();
      await Promise.all(reads);
      return found;
    };
    const paths = Object.keys(slices);
    const wholes = await gradientsFor(paths.map((path) => siteAt(model, path).weight!.matrix!));
    const byPath = new Map([...wholes].map(([{ path }, values]) => [path, values]));
    const set = await adapt(model, s2ft({ slices, inPlace: true }), { at: paths });
    const own = await gradientsFor(paths.map((path) => heldAt(model, path).slice));
    for (const path of paths) {
      const inside = insideOf(model, set, path);
      const columns = path.endsWith('down_proj');
      // Columns come in the order that the file lists them in.
      const expected = byPath.get(`${path}.weight`)!.filter((_, e) => inside(e));
      const given = own.get(heldAt(model, path).slice)!;
      const swapped = columns ? given : Float32Array.from([...given.slice(16), ...given.slice(0, 16)]);
      expect(distance(swapped, expected)).toBeLessThan(1e-6);
    }
  });

  it('keep the selected columns of an input for the backward pass, rows the input, and take 8 bytes an entry', async () => {
    const model = await tiny({ intermediate_size: 64 });
    const down = 'model.layers.0.mlp.down_proj';
    const up = 'model.layers.0.mlp.up_proj';
    const ledger = openMemoryLedger();
    const before = ledger.bytes();
    const set = await adapt(model, s2ft({ slices: { [down]: [3, 40, 9], [up]: [5, 6] }, inPlace: true }), { at: [down, up] });
    const p = 3 * 16 + 2 * 16;
    expect(trainable(model).reduce((sum, { shape }) => sum + sizeOf(shape), 0)).toBe(p);
    // What is and what was are one thing until the first update. Beside them the places of columns that lie apart.
    expect(ledger.bytes() - before).toBe(4 * p + 4 * (3 + 64));
    perturb(set, 1);
    expect(ledger.bytes() - before).toBe(8 * p + 4 * (3 + 64));
    const step = createStep({ model, objective: causalLM(), optimizer: adamw({ learningRate: 1 }) });
    expect(step.plan.peakBytes).toBe(4 * p);
    expect(step.stateBytes()).toBe(8 * p);
    step.dispose();
    const kept = (path: string, width: number): number => {
      const { slice } = heldAt(model, path);
      const call = createCall({ batch: {}, watched: new Map([[slice, slice.read()]]), training: true });
      const own = ledger.bytes();
      const x = tensor2d(new Float32Array(10 * width).fill(1), [10, width]);
      const site = siteAt(model, path);
      const tape = recordTape(() => set.sites.get(path)!.apply(x, (input) => input as Tensor2D, call, site));
      x.dispose();
      tape.value.dispose();
      const bytes = ledger.bytes() - own;
      tape.dispose();
      return bytes;
    };
    expect([kept(down, 64), kept(up, 16)]).toEqual([4 * 10 * 3, 4 * 10 * 16]);
    deleteAdapter(model, set.name);
    expect(ledger.bytes()).toBe(before);
    ledger.dispose();
  });

  it.each([
    ['apart', [3, 9]],
    ['next to one another', [3, 4]],
  ])('make one matrix anew at an update, with a second one while that lasts: %s', async (_, units) => {
    const model = await tiny();
    const path = 'model.layers.0.mlp.down_proj';
    await adapt(model, s2ft({ slices: { [path]: units }, inPlace: true }), { at: path });
    const { slice } = heldAt(model, path);
    slice.write(tidy(() => add(slice.read(), 1)));
    const next = tidy(() => add(slice.read(), 1));
    const ledger = openMemoryLedger();
    const before = ledger.bytes();
    slice.write(next);
    // [16, 32] twice, and less than what four columns and four rows of places hold.
    expect(ledger.peak() - before).toBeGreaterThan(4 * 512);
    expect(ledger.peak() - before).toBeLessThan(2 * 4 * 512 + 4 * 4 * (16 + 32));
    expect(ledger.bytes()).toBe(before - slice.bytes());
    ledger.dispose();
  });
});

describe('a set of slices in place', () => {
  it('is merged as it is, is taken out again bit for bit, and gives the base back when it goes', async () => {
    const model = await tiny();
    const given = await bytesOf(siteParameters(model));
    const base = await logits(model);
    const set = await adapt(model, s2ft({ ...all, inPlace: true }), { at, seed: 2 });
    expect(await logits(model)).toEqual(base);
    await trained(model, 4, 0.1);
    const inside = await logits(model);
    expect(distance(inside, base)).toBeGreaterThan(0.05);
    const held = await bytesOf(model.parameters().values());
    const ledger = openMemoryLedger();
    const before = ledger.bytes();
    const report = await mergeAdapter(model);
    // Nothing is computed, and the matrix is held once.
    expect(ledger.bytes()).toBe(before);
    expect(report.sites.every(({ kind, maxError }) => kind === 'dense' && maxError === 0)).toBe(true);
    expect(await logits(model)).toEqual(inside);
    await unmergeAdapter(model);
    expect(ledger.bytes()).toBe(before);
    ledger.dispose();
    expect(await bytesOf(model.parameters().values())).toEqual(held);
    expect(await logits(model)).toEqual(inside);
    deleteAdapter(model, set.name);
    expect(await bytesOf(siteParameters(model))).toEqual(given);
  });

  it.each([
    ['as it was loaded', {}],
    ['permuted', { permute: true }],
  ])('is written as what it added, in the order of the model as it was loaded: %s', async (_, options) => {
    const config = { num_attention_heads: 8, num_key_value_heads: 2, attention_bias: true };
    const model = await tiny(config);
    const set = await adapt(model, s2ft({ ...all, ...options, inPlace: true }), { at, seed: 5 });
    await trained(model, 4);
    const sink = memoryFolderSink();
    await verbs.save(set, sink);
    const written = JSON.parse(new TextDecoder().decode(sink.files.get('adapter_config.json'))) as Record<string, unknown>;
    expect([written['peft_type'], written['slices'], written['in_place']]).toEqual(['S2FT', slicesOf(set), undefined]);
    const expected = await logits(model);
    const plain = await tiny(config);
    const loaded = await verbs.load(plain, sink.files, {});
    expect(distance(await logits(plain), expected)).toBeLessThan(1e-5);
    expect(loaded.sites.get('model.layers.0.mlp.down_proj')!.startsFrom).toBe('base');
    const { slice, initial } = heldAt(model, 'model.layers.0.mlp.down_proj');
    const [is, was] = [await slice.read().data(), await initial.read().data()];
    const added = await loaded.sites.get('model.layers.0.mlp.down_proj')!.parameters['s2ft_V']!.read().data();
    expect([...added]).toEqual([...is].map((value, i) => Math.fround(value - was[i]!)));
  });

  it('is written as it is for going on, and needs floats there', async () => {
    const model = await tiny();
    const set = await adapt(model, s2ft({ ...all, inPlace: true }), { at });
    perturb(set, 3);
    const sink = memoryFolderSink();
    await verbs.save(set, sink, { form: 'native' });
    const expected = await logits(model);
    const other = await tiny();
    await verbs.load(other, sink.files, { trainable: true });
    expect(await logits(other)).toEqual(expected);
    expect(trainable(other).map(({ path }) => path)).toEqual(trainable(model).map(({ path }) => path));
    const coded = await tiny({ hidden_size: 32, head_dim: 8 });
    await expect(verbs.load(coded, sink.files, {})).rejects.toThrow(/\[/);
  });

  it('has its sites for itself, and leaves the others', async () => {
    const model = await tiny();
    const [down, next] = ['model.layers.0.mlp.down_proj', 'model.layers.1.mlp.down_proj'];
    await adapt(model, s2ft({ slices: { [down]: [1, 2] }, inPlace: true }), { at: down, name: 'a' });
    const before = await bytesOf(model.parameters().values());
    const again = adapt(model, s2ft({ slices: { [down]: [2] }, inPlace: true }), { at: down, name: 'b' });
    await expect(again).rejects.toMatchObject({
      details: { token: 'base-values' },
      help: expect.stringMatching(/Leave inPlace away/) as string,
    });
    await expect(adapt(model, lora({ rank: 2 }), { at: down, name: 'b' })).rejects.toThrow(/'a'/);
    // What would put another matrix there, too.
    await expect(prune(model, magnitude({ sparsity: 0.5 }), { at: down })).rejects.toMatchObject({
      details: { token: 'base-values' },
      help: expect.stringMatching(/Merge the other adapter for good/) as string,
    });
    expect(await bytesOf(model.parameters().values())).toEqual(before);
    expect(() => setAdapterScale(model, 'a', 0.5)).toThrow(/has no scale/);
    await adapt(model, s2ft({ slices: { [next]: [2] }, inPlace: true }), { at: next, name: 'b' });
    await adapt(model, lora({ rank: 2 }), { at: 'q_proj', name: 'c' });
    await prune(model, magnitude({ sparsity: 0.5 }), { at: 'k_proj' });
    expect([...model.adapters.keys()]).toEqual(['a', 'b', 'c']);
  });

  it('is refused by codes and by pruned matrices, which may train beside', async () => {
    const model = await tiny({ hidden_size: 32, head_dim: 8 });
    const options: S2ftOptions = { downRatio: 0.25, inPlace: true };
    await prune(model, magnitude({ sparsity: 0.5 }), { at: 'layers.0.**.down_proj' });
    await expect(adapt(model, s2ft(options), { at: 'down_proj' })).rejects.toMatchObject({
      details: { token: 'zeros' },
      help: expect.stringMatching(/Leave inPlace away/) as string,
    });
    for (const { path, weight } of model.sites('down_proj'))
      model.replace(path, ggufBlock(path, weight!.shape, 'Q8_0', await encodeGgufBlocks(path, weight!.shape, rowsOf(weight!), 'Q8_0')));
    const before = await bytesOf(siteParameters(model));
    await expect(adapt(model, s2ft(options), { at: 'down_proj' })).rejects.toMatchObject({
      message: expect.stringMatching(/s2ft in place needs the numbers of a matrix themselves, not codes/) as string,
      details: { token: 'floats' },
      help: expect.stringMatching(/Leave inPlace away/) as string,
    });
    expect(await bytesOf(siteParameters(model))).toEqual(before);
    await adapt(model, s2ft({ ...options, inPlace: false }), { at: 'down_proj' });
    expect(() => s2ft({ inPlace: 1 as never })).toThrow(/inPlace must be true or false/);
    expect(JSON.stringify(s2ft(options))).toContain('"inPlace":true');
  });
});
