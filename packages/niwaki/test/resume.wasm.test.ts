import { describe, expect, it } from 'vitest';
import { memory } from '@niwaki/tensor';
import { exactBatches } from '@niwaki/train';
import {
  adamw,
  frugal,
  galore,
  int8Weights,
  lion,
  lisa,
  memoryFolder,
  qGalore,
  quantize,
  sgd,
  train,
  type Method,
  type Participant,
  type RunFolder,
  type Transform,
} from '../src/index.ts';
import { bytesOf } from '../../testing/src/contract-model.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';

const steps = 8;
const rows = Array.from({ length: steps }, (_, i) => [Array.from({ length: 9 }, (_, t) => (i * 7 + t * t) % 32)]);
const state = { minSize: 64, blockSize: 64 };

interface Run {
  readonly make: () => Transform;
  readonly participants?: () => Participant[];
  readonly commit?: 'eager';
  readonly quantizer?: () => Method;
}
const runs: Readonly<Record<string, Run>> = {
  'sgd, which has no state': { make: () => sgd({ learningRate: 0.05 }) },
  'adamw in 8 bits': { make: () => adamw({ learningRate: 0.01, state }) },
  'lion in 8 bits': { make: () => lion({ learningRate: 0.003, state }) },
  'galore in 8 bits, stage by stage': { make: () => galore({ learningRate: 0.02, rank: 4, every: 3, state }), commit: 'eager' },
  'q-galore over int8 weights, stage by stage': {
    make: () => qGalore({ learningRate: 0.02, rank: 4, every: 2, window: 1, basisGroupSize: 32, state }),
    commit: 'eager',
    quantizer: () => int8Weights(),
  },
  'frugal of whole matrices by turns': {
    make: () => frugal({ learningRate: 0.01, every: 2, split: 'blocks', density: 0.3 }),
  },
  frugal: { make: () => frugal({ learningRate: 0.01, every: 3 }) },
  'adamw under lisa': { make: () => adamw({ learningRate: 0.01 }), participants: () => [lisa({ active: 1, every: 3 })] },
  'adamw under lisa, whose states are kept': {
    make: () => adamw({ learningRate: 0.01 }),
    participants: () => [lisa({ active: 1, every: 2, state: 'keep' })],
  },
  'adamw in 8 bits under lisa, whose states wait in host memory': {
    make: () => adamw({ learningRate: 0.01, state }),
    participants: () => [lisa({ active: 1, every: 2, state: 'offload' })],
  },
  'galore in 8 bits under lisa': {
    make: () => galore({ learningRate: 0.02, rank: 4, every: 2, state }),
    participants: () => [lisa({ active: 1, every: 3 })],
  },
};

/** Trains until the run ends, or until `stopAfter`; the parameters' bytes. */
async function trained(
  { make, participants, commit, quantizer }: Run,
  folder?: RunFolder,
  stopAfter = Infinity,
): Promise<Map<string, string>> {
  const model = await tinyLlama();
  if (quantizer !== undefined) await quantize(model, quantizer());
  const data = exactBatches(rows, { vocabularySize: 32 });
  const options = { data, optimizer: make(), seed: 3, ...(participants && { participants: participants() }), ...(commit && { commit }) };
  for await (const event of train(model, { ...options, ...(folder && { checkpoint: { folder, every: 1, resume: true } }) })) {
    if (event.kind === 'checkpoint' && event.step === stopAfter) break;
  }
  const found = await bytesOf(model.parameters().values());
  model.dispose();
  return found;
}

describe('a run that stopped', () => {
  it.each(Object.entries(runs))('goes on from its files as if it had not, with %s', async (_, run) => {
    const before = memory().numTensors;
    const whole = await trained(run);
    const folder = memoryFolder();
    await trained(run, folder, 4);
    await trained(run, folder, 5);
    expect(await trained(run, folder)).toEqual(whole);
    expect(memory().numTensors).toBe(before);
  });

  it('goes on with states in host memory where they were on the device', async () => {
    const run = runs['adamw under lisa, whose states are kept']!;
    const folder = memoryFolder();
    await trained(run, folder, 5);
    const offloaded = { ...run, participants: () => [lisa({ active: 1, every: 2, state: 'offload' })] };
    expect(await trained(offloaded, folder)).toEqual(await trained(run));
  });

  it('does not go on without its participants', async () => {
    const folder = memoryFolder();
    const run = runs['adamw under lisa']!;
    await trained(run, folder, 4);
    await expect(trained({ make: run.make }, folder)).rejects.toThrow(/participants\[0\] was lisa 1 of \S+ every 3, is absent/);
  });
});
