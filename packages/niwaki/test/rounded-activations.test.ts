import { describe, expect, it } from 'vitest';
import { memoryFolderSink } from '@niwaki/hub';
import { memory } from '@niwaki/tensor';
import {
  activations,
  adapt,
  cbq,
  disposeBatch,
  filesFolder,
  initializeModel,
  load,
  lora,
  mergeAdapter,
  quantize,
  rtn,
  saveModel,
  saveQuantized,
  tokenBatch,
  withAdapters,
  type Method,
  type Model,
  type QuantizeOptions,
} from '../src/index.ts';
import { distance, logits, train } from '../../testing/src/contract-model.ts';
import { calibrationConfig, calibrationSequences } from '../../testing/src/calibration-model.ts';

const rows = calibrationSequences(3, 16);
const logitsOf = (model: Model): Promise<Float32Array> => logits(model, undefined, rows);

async function rounded(...steps: readonly (readonly [Method, QuantizeOptions?])[]): Promise<Model> {
  const model = await initializeModel(calibrationConfig, { seed: 1, trainable: false });
  const batches = rows.map((row) => tokenBatch([row], { vocabularySize: 40 }));
  for (const [method, options] of steps) {
    const looks = method.traits.needs?.includes('inputs');
    await quantize(model, method, { ...options, ...(looks && { calibrate: { batches } }) });
  }
  batches.forEach(disposeBatch);
  return model;
}

describe('a model with rounded activations', () => {
  it.each([
    [
      'after weights',
      () => rounded([rtn({ groupSize: 32 })], [activations({ per: 'tensor' })], [activations(), { at: ['keys', 'values'] }]),
    ],
    [
      'by cbq',
      () => rounded([cbq({ groupSize: 32, epochs: 1, outliers: 'inputs', activations: { bits: 4, per: 'tensor', attention: ['keys'] } })]),
    ],
  ])('is saved as it is stored and computes the same when it is loaded: %s', async (_, make) => {
    const before = memory().numTensors;
    const model = await make();
    // Factors on columns stay with a matrix, and no format of integers has a place for them.
    for (const { path, weight } of model.sites('all-linear')) {
      if (weight!.parts['input_scales'] !== undefined) await quantize(model, rtn({ groupSize: 32 }), { at: `^${path}`, requantize: true });
    }
    const expected = await logitsOf(model);
    const sink = memoryFolderSink();
    await saveQuantized(model, sink);
    const { config } = model.info;
    model.dispose();
    const { model: again, warnings } = await load(filesFolder(sink.files));
    expect(warnings).toEqual([]);
    expect(again.info.config['niwaki']).toEqual(config['niwaki']);
    expect(await logitsOf(again)).toEqual(expected);
    again.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('keeps its steps in 32 bits where the rest is written in 16', async () => {
    const model = await rounded([activations({ per: 'tensor', symmetric: true })]);
    const [site] = model.sites('model.layers.1.mlp.down_proj');
    const step = await site!.input!.parts['input_scale']!.read().data();
    const sink = memoryFolderSink();
    await saveModel(model, sink, { dtype: 'f16' });
    const { model: again } = await load(filesFolder(sink.files));
    const [same] = again.sites(site!.path);
    expect(await same!.input!.parts['input_scale']!.read().data()).toEqual(step);
    model.dispose();
    again.dispose();
  });

  it('trains its steps in any run that has them train, beside what else does', async () => {
    const model = await rounded([activations({ bits: 4, per: 'tensor' })]);
    const steps = model.sites('all-linear').map(({ input }) => input!.parts['input_scale']!);
    for (const parameter of model.parameters().values()) parameter.trainable = steps.includes(parameter);
    const values = async (): Promise<number[]> => Promise.all(steps.map(async (step) => (await step.read().data())[0]!));
    const before = await values();
    const { losses, stateBytes } = await train(model, { steps: 5, rate: 2e-3 });
    expect(losses.at(-1)).toBeLessThan(losses[0]!);
    expect((await values()).every((value, i) => value !== before[i] && value > 0)).toBe(true);
    expect(stateBytes).toBe(steps.length * 8);
    model.dispose();
  });

  it('takes a LoRA that trains over it, merges into its floats exactly, and leaves the rounding where it was', async () => {
    const model = await rounded([activations({ bits: 4 })]);
    const plain = await logitsOf(model);
    // The last map: behind it nothing is rounded that would make much of a last bit.
    await adapt(model, lora({ rank: 2 }), { at: 'model.layers.1.mlp.down_proj', seed: 1 });
    expect(await logitsOf(model)).toEqual(plain);
    const { losses } = await train(model, { steps: 4, rate: 0.02 });
    expect(losses.at(-1)).toBeLessThan(losses[0]!);
    const beside = await logitsOf(model);
    expect(await logits(model, withAdapters('none'), rows)).toEqual(plain);
    await mergeAdapter(model);
    expect(model.sites('all-linear').every(({ input }) => input?.bits === 4)).toBe(true);
    expect(distance(await logitsOf(model), beside)).toBeLessThan(1e-4);
    model.dispose();
  });
});
