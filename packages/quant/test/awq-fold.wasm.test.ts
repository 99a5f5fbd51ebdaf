import { describe, expect, it } from 'vitest';
import { add, createDraw, memory, mul, noise, tensor1d, tensor2d, tidy } from '@niwaki/tensor';
import { initializeModel, tokenBatch, type AdapterSet, type Model, type Site, type TokenBatch } from '@niwaki/nn';
import { disposeBatch } from '@niwaki/engine';
import { weightBytes } from '@niwaki/weights';
import { bytesOf, logits } from '../../testing/src/contract-model.ts';
import { calibrationConfig, calibrationSequences, relativeDistance as distance } from '../../testing/src/calibration-model.ts';
import { awq, quantize, type AwqOptions } from '../src/index.ts';
import { disposedAfterEach } from '../../testing/src/disposed-after-each.ts';
import { couplingOf, divisionOf } from '../src/fold-factors.ts';

const things = disposedAfterEach();

/** Each head has its own values, and every map a bias that shows. */
const whole = { num_key_value_heads: 4, attention_bias: true, mlp_bias: true };
const sequences = calibrationSequences(4, 24);

async function build(fields: Record<string, unknown> = whole): Promise<Model> {
  const model = await initializeModel({ ...calibrationConfig, ...fields }, { seed: 1, trainable: false });
  things.push(model);
  for (const parameter of model.parameters().values()) {
    if (parameter.role !== 'bias' && parameter.role !== 'norm') continue;
    const shown = tidy(() => mul(noise(parameter.shape, createDraw(2, 0).at(parameter.path), 'gaussian'), 0.3));
    parameter.write(tidy(() => add(parameter.read(), shown)));
    shown.dispose();
  }
  return model;
}

function batchesOf(): TokenBatch[] {
  const batches = sequences.map((row) => tokenBatch([row], { vocabularySize: 40 }));
  things.push({ dispose: () => batches.forEach(disposeBatch) });
  return batches;
}

const logitsOf = (model: Model): Promise<Float32Array> => logits(model, undefined, sequences);

const rounding = { bits: 4, groupSize: 16 } as const;

async function quantized(fields: Record<string, unknown>, options: AwqOptions, at: string | string[] = 'all-linear'): Promise<Model> {
  const model = await build(fields);
  await quantize(model, awq({ ...rounding, ...options }), { at, calibrate: { batches: batchesOf() } });
  return model;
}

const siteAt = (model: Model, path: string): Site => model.sites(path)[0]!;
const hasFactors = (model: Model, path: string): boolean => siteAt(model, path).weight!.parts['input_scales'] !== undefined;
const bytes = (model: Model): number => model.sites('all-linear').reduce((sum, { weight }) => sum + weightBytes(weight!), 0);
const norms = (model: Model): Promise<Map<string, string>> =>
  bytesOf([...model.parameters().values()].filter(({ role }) => role === 'norm'));

describe('factors folded into what comes before', () => {
  it('leave the outputs of a float model, for every coupling that takes them, and come off bit for bit', async () => {
    const model = await build();
    const [before, stored] = [await logitsOf(model), await bytesOf(model.parameters().values())];
    for (const coupling of model.couplings) {
      const readers = coupling.readers.map((path) => siteAt(model, path));
      expect(couplingOf(model, readers, new Set())).toBe(coupling);
      const factors = Float32Array.from({ length: coupling.units * coupling.size }, (_, i) => 0.4 + (i % 5) / 2);
      const division = await divisionOf(model, [{ coupling, factors }], new Set());
      division.apply();
      const unbalanced = await logitsOf(model);
      expect(distance(unbalanced, before)).toBeGreaterThan(1e-3);
      const kept = await Promise.all(readers.map(async ({ weight }) => (await weight!.matrix!.read().data()).slice() as Float32Array));
      for (const { weight } of readers) weight!.matrix!.write(tidy(() => mul(weight!.matrix!.read(), tensor1d(factors))));
      expect(distance(await logitsOf(model), before)).toBeLessThan(1e-5);
      division.undo();
      for (const [i, { weight }] of readers.entries()) weight!.matrix!.write(tensor2d(kept[i]!, [...weight!.shape]));
    }
    expect(await bytesOf(model.parameters().values())).toEqual(stored);
  });

  it('give what factors beside the matrices give, and take no bytes', async () => {
    const float = await logitsOf(await build());
    const beside = await quantized(whole, {});
    const folded = await quantized(whole, { fold: true });
    const paths = beside.sites('all-linear').map(({ path }) => path);
    expect(paths.filter((path) => hasFactors(beside, path)).length).toBe(14);
    expect(paths.filter((path) => hasFactors(folded, path))).toEqual([]);
    // Two layers: three readers of 32, one of 32, two of 32, one of 64.
    expect(bytes(beside) - bytes(folded)).toBe(2 * 4 * (3 * 32 + 32 + 2 * 32 + 64));
    expect(await norms(folded)).not.toEqual(await norms(beside));
    const [outputs, expected] = [await logitsOf(folded), await logitsOf(beside)];
    expect(distance(expected, float)).toBeGreaterThan(0.01);
    // A few codes at a tie may fall to the other side.
    expect(distance(outputs, expected)).toBeLessThan(0.1 * distance(expected, float));
  });

  it('are none where heads share their values, as in the original: the output map is cut, and not scaled', async () => {
    const folded = await quantized({}, { fold: true });
    const plain = await build({});
    expect(folded.sites('all-linear').filter(({ path }) => hasFactors(folded, path))).toEqual([]);
    const [bare, given] = [await logitsOf(folded), await logitsOf(plain)];
    const beside = await logitsOf(await quantized({}, {}));
    expect(distance(bare, given)).toBeLessThan(2 * distance(beside, given));
  });

  it.each<[string, string[], string[]]>([
    ['the up map', ['down_proj'], ['up_proj']],
    ['the values', ['o_proj'], ['v_proj']],
    ['a norm', ['gate_proj', 'up_proj'], ['post_attention_layernorm']],
  ])('go into a float source that stays: %s', async (_, at, sources) => {
    const base = await bytesOf((await build()).parameters().values());
    const [beside, folded] = [await quantized(whole, {}, at), await quantized(whole, { fold: true }, at)];
    expect(distance(await logitsOf(folded), await logitsOf(beside))).toBeLessThan(2e-3);
    const now = await bytesOf([...folded.parameters().values()].filter(({ path }) => base.has(path)));
    const changed = [...now].filter(([path, value]) => value !== base.get(path)).map(([path]) => path);
    expect(changed.length).toBeGreaterThan(0);
    expect(changed.filter((path) => !sources.some((source) => path.includes(source)))).toEqual([]);
  });

  it('stay away where another map reads the same input', async () => {
    const model = await quantized(whole, { fold: true }, ['q_proj', 'k_proj']);
    expect(hasFactors(model, 'model.layers.0.self_attn.q_proj')).toBe(false);
    expect(await norms(model)).toEqual(await norms(await build()));
  });

  it('are taken back with the weights where a later block fails', async () => {
    const model = await build();
    const parameter = siteAt(model, 'model.layers.1.mlp.down_proj').weight!.matrix!;
    const values = (await parameter.read().data()).slice() as Float32Array;
    values[5] = Infinity;
    parameter.write(tensor2d(values, [32, 64]));
    const batches = batchesOf();
    const [before, tensors] = [await bytesOf(model.parameters().values()), memory().numTensors];
    await expect(quantize(model, awq({ ...rounding, fold: true }), { calibrate: { batches } })).rejects.toThrow(/holds Infinity/);
    expect(await bytesOf(model.parameters().values())).toEqual(before);
    expect(memory().numTensors).toBe(tensors);
  });

  it('refuse adapters, which read and change what is divided', async () => {
    const model = await build();
    const site = siteAt(model, 'model.layers.0.mlp.up_proj');
    const set: AdapterSet = {
      name: 'mine',
      method: { kind: 'none', options: {} },
      sites: new Map([[site.path, { kind: 'none', point: 'linear', parameters: {}, apply: (x, next) => next(x) }]]),
      replaced: new Map(),
      base: 'here',
    };
    model.attach(set);
    const work = quantize(model, awq({ ...rounding, fold: true }), { calibrate: { batches: batchesOf() } });
    await expect(work).rejects.toThrow(/the adapters mine stand on/);
    expect(() => awq({ fold: 'yes' as never })).toThrow(/fold must be true or false, got yes/);
  });
});
