import { init } from '../../backend/src/index.ts';
import { AbortError, memory, type Tensor } from '@niwaki/tensor';
import { lora } from '@niwaki/lowrank';
import { adapt } from '@niwaki/peft';
import type { Model } from '@niwaki/nn';
import { adamw, cosine } from '@niwaki/optim';
import { describe, expect, it } from 'vitest';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { languageData, memoryFolder, packSamples, train, type Sample, type StepEvent, type TrainOptions } from '../src/index.ts';

const missing = await gpuMissing();

const vocabularySize = 32;
const documents = [4, 7, 5, 6, 3, 8, 5].map((length, i) =>
  Array.from({ length }, (_, t) => (5 * i + 3 * t * (i + 1) + 1) % vocabularySize),
);
const samples = documents.map((ids): Sample => ({ kind: 'text', ids: Int32Array.from(ids), learn: new Uint8Array(ids.length).fill(1) }));

const theCase = (more: Partial<TrainOptions> = {}): TrainOptions => ({
  data: languageData(packSamples(samples, { context: 8, pack: false }).rows, { vocabularySize }),
  optimizer: adamw({ learningRate: 1e-2 }),
  schedule: cosine({ learningRate: 1e-2, warmup: 2 }),
  epochs: 3,
  batchSize: 2,
  accumulate: 2,
  clip: 1,
  seed: 11,
  ...more,
});

async function adapted(): Promise<Model> {
  const model = await tinyLlama({}, { trainable: false });
  await adapt(model, lora({ rank: 2, alpha: 4, dropout: 0.2 }), { at: 'all-linear', seed: 5 });
  return model;
}

async function trained(model: Model): Promise<number[][]> {
  const values: number[][] = [];
  for (const parameter of model.parameters().values())
    if (parameter.trainable) values.push([...(await (parameter.read() as Tensor).data())]);
  return values;
}

async function stepsOf(model: Model, options: TrainOptions, seen: StepEvent[] = []): Promise<StepEvent[]> {
  for await (const event of train(model, options)) if (event.kind === 'step') seen.push(event);
  return seen;
}
const losses = (steps: readonly StepEvent[]): object[] =>
  steps.map(({ step, loss, gradNorm, learningRate }) => ({ step, loss, gradNorm, learningRate }));

describe.skipIf(missing)('training on WebGPU', () => {
  it('stopped in its second epoch resumes to the bits of a run that never stopped, and leaves nothing behind', async () => {
    await init({ device: 'webgpu', software: true });
    const before = memory().numTensors;
    const whole = await adapted();
    const expected = await stepsOf(whole, theCase());
    const values = await trained(whole);
    expect(expected.at(-1)!.loss).toBeLessThan(expected[0]!.loss);

    const folder = memoryFolder();
    const controller = new AbortController();
    const first = await adapted();
    const seen: StepEvent[] = [];
    const stopping = (async () => {
      for await (const event of train(first, theCase({ checkpoint: { folder }, signal: controller.signal }))) {
        if (event.kind !== 'step') continue;
        seen.push(event);
        if (event.step === 3) controller.abort();
      }
    })();
    await expect(stopping).rejects.toThrow(AbortError);
    const second = await adapted();
    await stepsOf(second, theCase({ checkpoint: { folder, resume: true } }), seen);
    expect(losses(seen)).toEqual(losses(expected));
    expect(await trained(second)).toEqual(values);
    for (const model of [whole, first, second]) model.dispose();
    expect(memory().numTensors).toBe(before);
  });
});
