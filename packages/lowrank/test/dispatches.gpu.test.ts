import { blockwiseBackprop, causalLM, createStep, disposeBatch, languageBatch } from '@niwaki/engine';
import { adamw } from '@niwaki/optim';
import { adapt } from '@niwaki/peft';
import { createDraw } from '@niwaki/tensor';
import { describe, expect, it } from 'vitest';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { lora } from '../src/index.ts';
import { dispatchesOf } from '../../testing/src/count-dispatches.ts';

const missing = await gpuMissing();

/** What one step puts into the GPU's queue, adapters on all seven maps of a layer, optimizer included. */
async function ofStep(layers: number): Promise<Map<string, number>> {
  const model = await tinyLlama({ num_hidden_layers: layers }, { trainable: false });
  await adapt(model, lora({ rank: 2 }), { at: 'all-linear', seed: 1 });
  const batch = languageBatch([{ ids: [3, 17, 5, 29, 8, 1, 22, 14] }], { vocabularySize: 32 });
  const step = createStep({ model, objective: causalLM(), optimizer: adamw({ learningRate: 1e-3 }), estimator: blockwiseBackprop() });
  const run = async (attempt: number): Promise<void> => {
    await step.run({ batches: [batch], attempt, rate: 1e-3, progress: 0, draw: createDraw(1, attempt) });
  };
  await run(0);
  const counts = await dispatchesOf(() => run(1));
  step.dispose();
  disposeBatch(batch);
  model.dispose();
  return counts;
}

const totalOf = (counts: Iterable<number>): number => [...counts].reduce((sum, count) => sum + count, 0);

// Launches that sum the squares of gradients are the fewer the more buffers a device binds: the bounds hold for the least, 8.
describe.skipIf(missing)('a step of LoRA on WebGPU', () => {
  it('takes no more than 100 dispatches a layer, and 22 beside them', async () => {
    const [four, two] = [await ofStep(4), await ofStep(2)];
    // The first layer asks for no gradient of its input: what is counted is what two more layers add.
    const perLayer = new Map([...four].map(([name, count]) => [name, (count - (two.get(name) ?? 0)) / 2]));
    const layer = totalOf(perLayer.values());
    const rest = totalOf(two.values()) - 2 * layer;
    expect({ perLayer, layer: Math.min(layer, 100), rest: Math.min(rest, 22) }).toEqual({ perLayer, layer, rest });
  });
});
