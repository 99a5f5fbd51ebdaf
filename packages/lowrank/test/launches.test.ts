/** What a layer costs in calls of the device, which is most of a small model's step. */
import { causalLM, disposeBatch, fullTapeBackprop, languageBatch } from '@niwaki/engine';
import type { Model } from '@niwaki/nn';
import { createDraw, dispose, plainView } from '@niwaki/tensor';
import { tinyLlama } from '@niwaki/testing';
import { getBackend, getKernel } from '@tensorflow/tfjs-core';
import { describe, expect, it } from 'vitest';
import { lora } from '../src/index.ts';
import { adapt } from '@niwaki/peft';
import { launchesOf } from '../../testing/src/count-launches.ts';

const ids = [3, 17, 5, 29, 8, 1, 22, 14];

/** Launches of forward and backward with every tape kept, adapters on all seven maps of a layer. */
async function adapted(layers: number): Promise<Map<string, number>> {
  const model: Model = await tinyLlama({ num_hidden_layers: layers }, { trainable: false });
  await adapt(model, lora({ rank: 2 }), { at: 'all-linear', seed: 1 });
  const batch = languageBatch([{ ids }], { vocabularySize: 32 });
  const objective = causalLM();
  const counts = await launchesOf(async () => {
    const loss = await fullTapeBackprop().estimate(
      {
        model,
        objective,
        batch,
        wrt: new Set([...model.parameters().values()].filter(({ trainable }) => trainable)),
        view: plainView,
        at: { attempt: 0, phaseStep: 0, micro: 0, pass: 0 },
        draw: createDraw(1, 0),
        scale: 1,
      },
      { push: (_, gradient) => dispose(gradient.kind === 'dense' ? gradient.value : []) },
    );
    loss.dispose();
  });
  disposeBatch(batch);
  model.dispose();
  return counts;
}

/** A device without kernels of ours composes them of many: only one that has them is held to the number. */
const fused = (): boolean => getKernel('NiwakiLora', getBackend()) !== undefined;

describe('a layer with adapters on all of its linear maps', () => {
  it('takes no more than 27 launches forward and backward', async () => {
    const [four, two] = [await adapted(4), await adapted(2)];
    // The first layer asks for no gradient of its input: what is counted is what two more layers add.
    const perLayer = Object.fromEntries([...four].map(([name, count]) => [name, (count - (two.get(name) ?? 0)) / 2]));
    const total = Object.values(perLayer).reduce((sum, count) => sum + count, 0);
    expect({ total, within: total <= 27 }).toEqual({ total, within: fused() });
  });
});
