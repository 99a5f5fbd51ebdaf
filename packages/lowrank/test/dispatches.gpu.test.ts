import { blockwiseBackprop, causalLM, createStep, disposeBatch, languageBatch } from '@niwaki/engine';
import { adamw } from '@niwaki/optim';
import { adapt } from '@niwaki/peft';
import { createDraw } from '@niwaki/tensor';
import { backend } from '@tensorflow/tfjs-core';
import { describe, expect, it } from 'vitest';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { lora } from '../src/index.ts';
import { dispatchesOf } from '../../testing/src/count-dispatches.ts';

const missing = await gpuMissing();

/** Steps with adapters on all seven maps of a layer, optimizer included, after the first ones. */
async function inStep<T>(layers: number, watch: (run: () => Promise<void>) => Promise<T>): Promise<T> {
  const model = await tinyLlama({ num_hidden_layers: layers }, { trainable: false });
  await adapt(model, lora({ rank: 2 }), { at: 'all-linear', seed: 1 });
  const batch = languageBatch([{ ids: [3, 17, 5, 29, 8, 1, 22, 14] }], { vocabularySize: 32 });
  const step = createStep({ model, objective: causalLM(), optimizer: adamw({ learningRate: 1e-3 }), estimator: blockwiseBackprop() });
  const run = async (attempt: number): Promise<void> => {
    await step.run({ batches: [batch], attempt, rate: 1e-3, progress: 0, draw: createDraw(1, attempt) });
  };
  for (const attempt of [0, 1]) await run(attempt);
  const counts = await watch(() => run(2));
  step.dispose();
  disposeBatch(batch);
  model.dispose();
  return counts;
}

interface Traffic {
  /** Times that values were brought to the host. */
  readonly reads: number;
  /** Dispatches behind the first of them. */
  readonly behind: number;
  /** Buffers made that a shader writes. */
  readonly buffers: number;
}

/** What goes between host and GPU, and what the GPU has to make, while something runs. */
async function trafficOf(run: () => Promise<void>): Promise<Traffic> {
  const gpu = backend() as unknown as { device: GPUDevice; read(id: object): Promise<unknown>; readSync(id: object): unknown };
  const { device, read, readSync } = gpu;
  const { createBuffer } = device;
  const pass = GPUComputePassEncoder.prototype;
  const { dispatchWorkgroups } = pass;
  let [reads, behind, buffers] = [0, 0, 0];
  gpu.read = (id) => (reads++, read.call(gpu, id));
  gpu.readSync = (id) => (reads++, readSync.call(gpu, id));
  device.createBuffer = (descriptor) => {
    // What comes from the host is mapped as it is made.
    if ((descriptor.usage & GPUBufferUsage.STORAGE) !== 0 && descriptor.mappedAtCreation !== true) buffers++;
    return createBuffer.call(device, descriptor);
  };
  pass.dispatchWorkgroups = function (...groups) {
    if (reads > 0) behind++;
    return dispatchWorkgroups.apply(this, groups);
  };
  try {
    await run();
  } finally {
    Object.assign(gpu, { read, readSync });
    pass.dispatchWorkgroups = dispatchWorkgroups;
    device.createBuffer = createBuffer;
  }
  return { reads, behind, buffers };
}

const totalOf = (counts: Iterable<number>): number => [...counts].reduce((sum, count) => sum + count, 0);

// Launches that sum the squares of gradients are the fewer the more buffers a device binds: the bounds hold for the least, 8.
describe.skipIf(missing)('a step of LoRA on WebGPU', () => {
  it('takes no more than 100 dispatches a layer, and 22 beside them', async () => {
    const [four, two] = [await inStep(4, dispatchesOf), await inStep(2, dispatchesOf)];
    // The first layer asks for no gradient of its input: what is counted is what two more layers add.
    const perLayer = new Map([...four].map(([name, count]) => [name, (count - (two.get(name) ?? 0)) / 2]));
    const layer = totalOf(perLayer.values());
    const rest = totalOf(two.values()) - 2 * layer;
    expect({ perLayer, layer: Math.min(layer, 100), rest: Math.min(rest, 22) }).toEqual({ perLayer, layer, rest });
  });

  it('reads its loss, norm and gate once, behind everything else, and works in the buffers of the step before', async () => {
    expect(await inStep(2, trafficOf)).toEqual({ reads: 1, behind: 0, buffers: 0 });
  });
});
