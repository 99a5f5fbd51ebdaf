import { describe, expect, it } from 'vitest';
import { ConfigError, memory, mul, NotFoundError, ones, tidy, type Tensor2D } from '@niwaki/tensor';
import { initializeModel, tokenBatch, type Model, type TokenBatch } from '@niwaki/nn';
import { applyMethod, defineMethod, disposeBatch, type Method, type Window } from '@niwaki/engine';
import { createCall, type TensorStep } from '@niwaki/weights';
import { activations, awq, nf4, quantize, rtn, type ActivationOptions, type QuantizeOptions } from '../src/index.ts';
import { tensorSteps } from '../src/activations.ts';
import { logits } from '../../testing/src/contract-model.ts';
import { calibrationConfig as config, calibrationSequences, relativeDistance as distance } from '../../testing/src/calibration-model.ts';

const build = (): Promise<Model> => initializeModel(config, { seed: 1, trainable: false });
const sequences = calibrationSequences(3, 20);
const batchesOf = (): TokenBatch[] => sequences.map((row) => tokenBatch([row], { vocabularySize: 40 }));
const logitsOf = (model: Model): Promise<Float32Array> => logits(model, undefined, sequences);

/** Relative distance of the logits after methods on a fresh model, which leaves nothing. */
async function errorOf(...steps: readonly (readonly [Method, QuantizeOptions?])[]): Promise<number> {
  const tensors = memory().numTensors;
  const model = await build();
  const before = await logitsOf(model);
  for (const [method, options] of steps) {
    const batches = method.traits.needs?.includes('inputs') ? batchesOf() : [];
    await quantize(model, method, { ...options, ...(batches.length > 0 && { calibrate: { batches } }) });
    batches.forEach(disposeBatch);
  }
  const error = distance(await logitsOf(model), before);
  model.dispose();
  expect(memory().numTensors).toBe(tensors);
  return error;
}

describe('rounded activations', () => {
  it.each(['token', 'tensor'] as const)('lose less with more bits, per %s', async (per) => {
    const [four, six, eight] = [
      await errorOf([activations({ bits: 4, per })]),
      await errorOf([activations({ bits: 6, per })]),
      await errorOf([activations({ bits: 8, per })]),
    ];
    expect(four).toBeGreaterThan(2 * six);
    expect(six).toBeGreaterThan(2 * eight);
    expect(eight).toBeLessThan(0.06);
  });

  it('lose least where each row has its own range, and where its zero may move', async () => {
    const own = await errorOf([activations({ bits: 4 })]);
    expect(own).toBeLessThan(await errorOf([activations({ bits: 4, per: 'tensor' })]));
    expect(own).toBeLessThan(await errorOf([activations({ bits: 4, symmetric: true })]));
  });

  it('lose less where columns with outliers are in floats, over packed weights too, and the same where no column has any', async () => {
    const by = (outlierThreshold?: number): Method =>
      activations({ bits: 4, symmetric: true, ...(outlierThreshold !== undefined && { outlierThreshold }) });
    const int8 = rtn({ bits: 8, groupSize: 'row', symmetric: true });
    for (const before of [[], [[int8] as const]]) {
      const plain = await errorOf(...before, [by()]);
      expect(await errorOf(...before, [by(0)])).toBe(plain);
      expect(await errorOf(...before, [by(1e6)])).toBe(plain);
      expect(await errorOf(...before, [by(2)])).toBeLessThan(0.8 * plain);
    }
    // Every column is an outlier's.
    expect(await errorOf([by(1e-30)])).toBe(0);
    expect(by(6).options).toEqual({ bits: 4, symmetric: true, per: 'token', outlierThreshold: 6 });
    expect(() => activations({ per: 'tensor', outlierThreshold: 6 })).toThrow(/outlierThreshold 6 is for rows with ranges of their own/);
  });

  it('go with any weights, in either order', async () => {
    const [weights, inputs] = [rtn({ groupSize: 32 }), activations({ bits: 6 })];
    const after = await errorOf([weights], [inputs]);
    expect(await errorOf([inputs], [weights])).toBe(after);
    expect(after).toBeGreaterThan(await errorOf([weights]));
    expect(await errorOf([nf4({ blockSize: 32 })], [activations({ per: 'tensor' })])).toBeGreaterThan(0);
  });

  it('reach operands of attention where they are named', async () => {
    const maps = await errorOf([activations({ bits: 4 })]);
    const cached = await errorOf([activations({ bits: 4 }), { at: ['keys', 'values'] }]);
    expect(cached).toBeGreaterThan(0);
    expect(cached).toBeLessThan(maps);
    expect(await errorOf([activations({ bits: 4 }), { at: ['all-linear', 'queries', 'keys', 'values'] }])).toBeGreaterThan(maps);
  });

  it('store nothing per token, and a step or a step and a zero a site per tensor', async () => {
    const model = await build();
    const batches = batchesOf();
    expect(await quantize(model, activations())).toEqual({ sites: model.sites('all-linear').map(({ path }) => path), bytes: 0 });
    const { bytes } = await quantize(model, activations({ per: 'tensor' }), { calibrate: { batches } });
    expect(bytes).toBe(14 * 8);
    const half = await quantize(model, activations({ per: 'tensor', symmetric: true }), { at: 'mlp.**', calibrate: { batches } });
    expect(half.bytes).toBe(6 * 4);
    const [site] = model.sites('model.layers.0.mlp.up_proj');
    expect([site!.weight!.kind, site!.input!.per, site!.input!.gradient]).toEqual(['dense', 'tensor', 'surrogate']);
    batches.forEach(disposeBatch);
    model.dispose();
  });

  it('are refused where there is nothing to round, or nothing to look at', async () => {
    const model = await build();
    const batches = batchesOf();
    const per = 'tensor';
    await expect(quantize(model, activations({ per }))).rejects.toThrow(/needs calibration batches/);
    await expect(quantize(model, activations(), { calibrate: { batches } })).rejects.toThrow(/reads no data/);
    await expect(quantize(model, activations(), { at: 'embed_tokens' })).rejects.toThrow(NotFoundError);
    const operands = quantize(model, activations({ per }), { at: ['all-linear', 'keys'], calibrate: { batches } });
    await expect(operands).rejects.toThrow(/layers.0.self_attn.keys' is an operand of attention, which is rounded per token/);
    const norm = model.parameters().get('model.layers.0.input_layernorm.weight')!;
    norm.write(tidy(() => mul(norm.read(), Infinity)));
    await expect(quantize(model, activations({ per }), { calibrate: { batches } })).rejects.toThrow(
      /layers.0.self_attn.q_proj' is given .* not finite/,
    );
    expect(model.sites('all-linear').every(({ input }) => input === undefined)).toBe(true);
    norm.write(ones([...norm.shape]));
    await quantize(model, activations({ per }), { calibrate: { batches } });
    await expect(quantize(model, awq({ groupSize: 32, fold: true }), { calibrate: { batches } })).rejects.toThrow(ConfigError);
    batches.forEach(disposeBatch);
    model.dispose();
  });
});

/** Steps of one site with some factors, and the input that the site was given, all batches in one. */
async function stepsAt(path: string, grid: Required<Pick<ActivationOptions, 'bits' | 'symmetric'>>, factor: number) {
  const model = await build();
  const batches = batchesOf();
  let found: TensorStep | undefined;
  const seen: number[] = [];
  const visit = async (window: Window): Promise<void> => {
    const [site] = window.groups.flat();
    const factors = new Map([[site!, new Float32Array(site!.weight!.shape[1]).fill(factor)]]);
    found = (await tensorSteps(window, [site!], grid, factors)).get(site!);
  };
  const collecting = defineMethod({ kind: 'steps', options: {}, traits: {}, makes: 'input', visit, make: async () => ({}) });
  const { weight } = model.sites(path)[0]!;
  await applyMethod(model, collecting, { at: path, calibrate: { batches } });
  const site = model.sites(path)[0]!;
  site.weight = { ...weight!, apply: (x: Tensor2D, call) => (seen.push(...x.dataSync()), weight!.apply(x, call)) };
  for (const batch of batches)
    tidy(() => model.stages().reduce((carry, stage) => ({ ...carry, ...stage.run(carry, createCall({ batch })) }), {}));
  site.weight = weight!;
  batches.forEach(disposeBatch);
  model.dispose();
  return { step: found!, seen };
}

describe('the step of an input', () => {
  const lost = (values: readonly number[], { scale, zero = 0 }: TensorStep, bits: number): number =>
    values.reduce((sum, x) => {
      const code = Math.min(Math.max(Math.round(x / scale) + zero, 0), 2 ** bits - 1);
      return sum + (scale * (code - zero) - x) ** 2;
    }, 0);

  it.each([
    [3, true],
    [4, false],
  ] as const)('of %i bits loses least of the squares, symmetric: %s', async (bits, symmetric) => {
    const { step, seen } = await stepsAt('model.layers.0.mlp.down_proj', { bits, symmetric }, 1);
    const [least, most] = [Math.min(...seen), Math.max(...seen)];
    const widest = symmetric ? Math.max(-least, most) / (2 ** (bits - 1) - 1) : (most - least) / (2 ** bits - 1);
    const tried = Array.from({ length: 24 }, (_, i) => {
      const scale = 0.93 ** i * widest;
      return { scale, zero: symmetric ? 2 ** (bits - 1) : Math.round((-(0.93 ** i) * least) / scale) };
    });
    const best = Math.min(...tried.map((one) => lost(seen, one, bits)));
    expect(lost(seen, step, bits)).toBeLessThan(1.0001 * best);
    // The whole range wastes its codes on a few.
    expect(best).toBeLessThan(0.9 * lost(seen, tried[0]!, bits));
  });

  it('is that of the scaled channels where they are scaled', async () => {
    const grid = { bits: 4, symmetric: false };
    const [plain, halved] = [
      await stepsAt('model.layers.1.mlp.down_proj', grid, 1),
      await stepsAt('model.layers.1.mlp.down_proj', grid, 0.5),
    ];
    expect(halved.step.scale).toBeCloseTo(plain.step.scale / 2, 6);
    expect(halved.step.zero).toBe(plain.step.zero);
  });
});
