import { describe, expect, it } from 'vitest';
import { AbortError, ConfigError, memory } from '@niwaki/tensor';
import { initializeModel, tokenBatch, type Model, type TokenBatch } from '@niwaki/nn';
import { disposeBatch, type FitProgress, type Method } from '@niwaki/engine';
import { activations, cbq, quantize, rtn } from '../src/index.ts';
import { logits } from '../../testing/src/contract-model.ts';
import { calibrationConfig as config, calibrationSequences, relativeDistance as distance } from '../../testing/src/calibration-model.ts';

const build = (layers = 2): Promise<Model> => initializeModel({ ...config, num_hidden_layers: layers }, { seed: 1, trainable: false });
const sequences = calibrationSequences(4, 24);
const batchesOf = (): TokenBatch[] => sequences.slice(0, 2).map((row) => tokenBatch([row.slice(0, 12)], { vocabularySize: 40 }));

/** Relative distance of the logits after each of some methods on a fresh model. */
async function errorsOf(...methods: readonly Method[]): Promise<number[]> {
  const model = await build();
  const before = await logits(model, undefined, sequences);
  const batches = sequences.map((row) => tokenBatch([row], { vocabularySize: 40 }));
  const errors: number[] = [];
  for (const method of methods) {
    await quantize(model, method, method.kind === 'cbq' ? { calibrate: { batches } } : {});
    errors.push(distance(await logits(model, undefined, sequences), before));
  }
  batches.forEach(disposeBatch);
  model.dispose();
  return errors;
}

const quick = { bits: 2, groupSize: 32, epochs: 2 } as const;

describe('cbq with rounded activations', () => {
  it('loses less with 4-bit activations where it was fitted to them, and next to nothing with 8 bits', async () => {
    const nearest = { bits: 4, groupSize: 32 } as const;
    const four = { ...nearest, epochs: 4, window: 1 } as const;
    const rounding = activations({ bits: 4 });
    const [, rounded] = await errorsOf(rtn({ ...nearest, mse: true }), rounding);
    const [plain, behind] = await errorsOf(cbq(four), rounding);
    const [eight] = await errorsOf(cbq({ ...four, activations: { bits: 8 } }));
    const [fitted] = await errorsOf(cbq({ ...four, activations: { bits: 4 } }));
    expect(eight).toBeLessThan(1.1 * plain!);
    expect(fitted).toBeLessThan(0.9 * rounded!);
    expect(fitted).toBeLessThan(behind!);
  });

  it('trains the step of each input with its windows, and leaves it at the site', async () => {
    const tensors = memory().numTensors;
    const model = await build(3);
    const batches = batchesOf();
    const shared = model.sites('model.layers.1.mlp.down_proj')[0]!;
    const scales: number[] = [];
    const onFit = ({ done, total }: FitProgress): void => {
      const step = shared.input?.parts['input_scale'];
      if (step !== undefined && (done === 1 || done === total)) scales.push(step.read().dataSync()[0]!);
    };
    const activations = { bits: 4, per: 'tensor', symmetric: true, learningRate: 1e-2, attention: ['keys', 'values'] } as const;
    const { sites, bytes } = await quantize(model, cbq({ ...quick, activations }), { calibrate: { batches, onFit } });
    // In both windows that hold it: a part of 0.01 a step of Adam at most.
    expect(scales).toHaveLength(4);
    const [first, ended, again, last] = scales;
    for (const [from, to] of [
      [first!, ended!],
      [again!, last!],
    ]) {
      expect(Math.abs(to! / from! - 1)).toBeGreaterThan(1e-3);
      expect(Math.abs(to! / from! - 1)).toBeLessThan(0.1);
    }
    expect(Math.abs(again! / ended! - 1)).toBeLessThan(0.011);
    expect(shared.input!.parts['input_scale']!.read().dataSync()[0]).toBe(last);
    expect(model.sites('all-linear').every(({ weight, input }) => weight!.kind === 'affine' && input!.per === 'tensor')).toBe(true);
    const operands = model.sites('**', { points: ['operand'] });
    expect(operands.map(({ path, input }) => [path.split('.').at(-1), input?.per])).toEqual(
      [0, 1, 2].flatMap(() => [
        ['queries', undefined],
        ['keys', 'token'],
        ['values', 'token'],
      ]),
    );
    expect(sites).toHaveLength(21 + 6);
    const entries = model.sites('all-linear').reduce((total, { weight }) => total + weight!.shape[0] * weight!.shape[1], 0);
    expect(bytes).toBe(entries / 4 + (4 * entries) / 32 + entries / 32 + 21 * 4);
    batches.forEach(disposeBatch);
    model.dispose();
    expect(memory().numTensors).toBe(tensors);
  });

  it('rounds scaled channels where it scales them, and takes inputs back when it is stopped', async () => {
    const activations = { bits: 4, per: 'tensor', attention: ['queries'] } as const;
    const before = memory().numTensors;
    const model = await build(3);
    const batches = batchesOf();
    const held = memory().numTensors;
    const stop = new AbortController();
    const onFit = ({ window, done }: FitProgress): void => void (window[0] === 'model.layers.1' && done === 2 && stop.abort());
    const method = cbq({ ...quick, activations, outliers: 'inputs' });
    await expect(quantize(model, method, { calibrate: { batches, onFit }, signal: stop.signal })).rejects.toThrow(AbortError);
    expect(model.sites('**', { points: ['linear', 'operand'] }).every(({ input }) => input === undefined)).toBe(true);
    expect(memory().numTensors).toBe(held);
    await quantize(model, method, { calibrate: { batches } });
    const scaled = model.sites('all-linear').filter(({ weight }) => weight!.parts['input_scales'] !== undefined);
    expect(scaled.length).toBeGreaterThan(0);
    for (const { weight, input } of scaled) {
      expect(await input!.parts['input_factors']!.read().data()).toEqual(await weight!.parts['input_scales']!.read().data());
    }
    expect(model.sites('all-linear').filter(({ input }) => input!.parts['input_factors'] !== undefined)).toEqual(scaled);
    batches.forEach(disposeBatch);
    model.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('refuses operands of attention that it cannot round', async () => {
    const of = (attention: readonly string[]): Method => cbq({ groupSize: 32, activations: { attention: attention as never } });
    expect(() => of(['probabilities'])).toThrow(/probabilities cannot be rounded: the attention kernel never has them all/);
    const model = await build();
    const batches = batchesOf();
    const calibrate = { batches };
    // A family without sites for them, and maps that are not of attention.
    const without: Model = { ...model, sites: (at, options) => (options?.points ? model.sites('nothing', options) : model.sites(at)) };
    await expect(quantize(without, of(['keys']), { calibrate })).rejects.toThrow(/no keys of attention that could be rounded/);
    await expect(quantize(model, of(['keys']), { at: 'mlp.**', calibrate })).rejects.toThrow(ConfigError);
    expect(model.sites('**', { points: ['linear', 'operand'] }).every(({ input }) => input === undefined)).toBe(true);
    batches.forEach(disposeBatch);
    model.dispose();
  });
});
