import { describe, expect, it } from 'vitest';
import { createDraw, div, memory, mul, noise, tensor1d, type Tensor1D } from '@niwaki/tensor';
import type { Call } from '@niwaki/weights';
import type { Carry, Model } from '@niwaki/nn';
import { sgd } from '@niwaki/optim';
import { blockwiseBackprop, causalLM, createStep, disposeBatch, fullTapeBackprop, languageBatch } from '@niwaki/engine';
import { tinyLlama } from '../../testing/src/index.ts';
import { collect } from './support/collect.ts';

const batchOf = () => languageBatch([{ ids: [3, 17, 5, 29, 8, 1, 22, 14] }, { ids: [9, 2, 30, 11, 6] }], { vocabularySize: 32 });

/** The same model with something done to the hidden state that a stage gives. */
const after = (model: Model, path: string, change: (h: Carry[string], call: Call) => Carry[string]): Model => ({
  ...model,
  stages: () =>
    model.stages().map((stage) =>
      stage.path !== path
        ? stage
        : {
            ...stage,
            run: (carry: Carry, call: Call): Carry => {
              const out = stage.run(carry, call);
              return { ...out, h: change(out['h']!, call) };
            },
          },
    ),
});

describe('a stage computed again', () => {
  it('drops what it dropped the first time', async () => {
    const model = await tinyLlama();
    const seen: number[] = [];
    const dropping = after(model, 'model.layers.0', (h, { draw, training }) => {
      expect(training).toBe(true);
      const address = draw.at('model.layers.0#dropout');
      seen.push(address.sample);
      return div(mul(h, noise(h.shape, address, 'mask', { keep: 0.8 })), 0.8);
    });
    const batch = batchOf();
    const blockwise = await collect(blockwiseBackprop({ verifyRecompute: true }), dropping, batch);
    const kept = await collect(fullTapeBackprop(), dropping, batch);
    expect(kept).toEqual(blockwise);
    expect(blockwise.loss).not.toBe((await collect(blockwiseBackprop(), model, batch)).loss);
    expect(new Set(seen)).toEqual(new Set([0]));
    disposeBatch(batch);
    model.dispose();
  });

  it('takes its choices again as they were, tensors among them, and leaves none behind', async () => {
    const model = await tinyLlama();
    let chosen = 0;
    const choosing = after(model, 'model.layers.1', (h, { decide }) => {
      // Another choice each time it is made: only a replay gives the same again.
      const { scale } = decide('model.layers.1#scale', () => ({ scale: [tensor1d(Array.from({ length: 16 }, () => 1 + ++chosen / 100))] }));
      return mul(h, scale[0] as Tensor1D);
    });
    const batch = batchOf();
    const before = memory().numTensors;
    await collect(blockwiseBackprop({ verifyRecompute: true }), choosing, batch);
    expect(chosen).toBe(16);
    await collect(fullTapeBackprop(), choosing, batch);
    expect(chosen).toBe(32);
    expect(memory().numTensors).toBe(before);
    disposeBatch(batch);
    model.dispose();
  });
});

it('draws for each micro-batch of a step under a number of its own', async () => {
  const model = await tinyLlama();
  const used = new Set<string>();
  const drawing = after(model, 'model.layers.0', (h, { draw, at }) => {
    const { step, sample } = draw.at('model.layers.0#dropout');
    used.add(`${step} ${at.micro} ${sample}`);
    return h;
  });
  const step = createStep({ model: drawing, objective: causalLM(), optimizer: sgd({ learningRate: 0.1 }) });
  const batches = [batchOf(), batchOf()];
  for (const attempt of [4, 5]) await step.run({ batches, attempt, rate: 0.1, progress: 0, draw: createDraw(3, attempt) });
  expect([...used]).toEqual(['4 0 0', '4 1 1', '5 0 0', '5 1 1']);
  batches.forEach(disposeBatch);
  step.dispose();
  model.dispose();
});

it('draws for each chunk of the head under a name of its own', async () => {
  const model = await tinyLlama();
  const names: string[] = [];
  const inHead: Model = {
    ...model,
    stages: () =>
      model.stages().map((stage) =>
        stage.path !== 'lm_head'
          ? stage
          : {
              ...stage,
              run: (carry: Carry, call: Call): Carry => {
                names.push(String(call.draw.at('lm_head#dropout').id));
                return stage.run(carry, call);
              },
            },
      ),
  };
  const batch = batchOf();
  const wrt = [...model.parameters().values()].filter(({ path }) => path.includes('layers.1'));
  await collect(blockwiseBackprop({ chunkBytes: 32 * 4 * 4 }), inHead, batch, { wrt });
  expect(names.length).toBe(3);
  expect(new Set(names).size).toBe(3);
  disposeBatch(batch);
  model.dispose();
});
