import { describe, expect, it } from 'vitest';
import { createDraw, memory, noise, tensor1d, tensor2d, tidy, type Range, type Tensor, type Tensor2D } from '@niwaki/tensor';
import { entriesOf, flatPlaces, largestOf, packPlaces, placedParameters, sparseDelta } from '@niwaki/weights';
import { agedAdamw, sm3 } from '@niwaki/optim';
import { causalLM, createStep, disposeBatch, languageBatch } from '@niwaki/engine';
import { adapt } from '@niwaki/peft';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { spiel, spielParticipant, type SpielAdapter } from '../src/index.ts';

const missing = await gpuMissing();

describe.skipIf(missing)('entries of a matrix on WebGPU', () => {
  // Two stretches.
  const shape = [900, 301] as const;

  it('lie where they were put, in columns above 32767 too', async () => {
    const wide = [3, 65536] as const;
    const flat = [0, 65535, 65536 + 40_000, 3 * 65536 - 1];
    const index = tensor1d(packPlaces(flat, wide), 'int32');
    const parts = placedParameters({ values: 'v', index: 'i' }, wide, { values: tensor1d([1, 2, 3, 4]), index });
    const dense = sparseDelta(wide, parts).dense();
    const values = await dense.data();
    expect(Array.from(values.entries()).filter(([, value]) => value !== 0)).toEqual(flat.map((at, i) => [at, i + 1]));
    for (const used of [dense, parts.values, parts.index]) used.dispose();
  });

  it('are found, and the largest are those of the whole, in order', async () => {
    const before = memory().numTensors;
    const matrix = noise([...shape], createDraw(4, 0).at('m'), 'gaussian') as Tensor2D;
    const values = await matrix.data();
    const rowsOf = ([from, to]: Range = [0, 900]): Tensor => tensor2d(values.slice(from * shape[1], to * shape[1]), [to - from, shape[1]]);
    const order = Array.from(values.keys()).sort((a, b) => values[b]! - values[a]! || a - b);
    for (const count of [1, 65]) {
      const { places, scores } = tidy(() => largestOf(rowsOf, count, shape));
      const again = tidy(() => entriesOf(rowsOf, places, shape));
      const at = await places.data();
      expect(Array.from({ length: count }, (_, i) => at[2 * i]! * 301 + at[2 * i + 1]!)).toEqual(order.slice(0, count));
      expect(await again.data()).toEqual(await scores.data());
      for (const used of [places, scores, again]) used.dispose();
    }
    matrix.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it.each(['AG', 'MA'] as const)('come and go (%s), the same ones twice', async (algorithm) => {
    const before = memory().numTensors;
    const run = async (): Promise<{ places: number[][]; initial: number[][]; losses: number[] }> => {
      const model = await tinyLlama({ num_hidden_layers: 1 });
      const method = spiel({ algorithm, density: 0.05, reselectionSteps: 4, accumulationSteps: 2 });
      const set = await adapt(model, method, { at: ['q_proj', 'down_proj'], seed: 3 });
      const placesOf = (): Promise<number[][]> =>
        Promise.all(
          [...set.sites.values()].map(async (adapter) => {
            const { index, shape: own } = adapter as SpielAdapter;
            return [...flatPlaces(await index.read().data(), own)];
          }),
        );
      const initial = await placesOf();
      const optimizer = algorithm === 'AG' ? agedAdamw({ learningRate: 1 }) : sm3({ learningRate: 1 });
      const step = createStep({ model, objective: causalLM(), optimizer, participants: [spielParticipant(set)] });
      const batch = languageBatch([{ ids: [3, 1, 4, 1, 5, 9] }], { vocabularySize: 32 });
      const losses: number[] = [];
      for (let attempt = 0; attempt < 7; attempt++) {
        const { loss } = await step.run({ batches: [batch], attempt, rate: 0.02, progress: 0, steps: 20, draw: createDraw(5, attempt) });
        losses.push(loss);
      }
      const places = await placesOf();
      disposeBatch(batch);
      step.dispose();
      model.dispose();
      return { places, initial, losses };
    };
    const first = await run();
    expect(await run()).toEqual(first);
    expect(first.places).not.toEqual(first.initial);
    for (const own of first.places) expect(new Set(own).size).toBe(own.length);
    expect(first.losses.at(-1)).toBeLessThan(first.losses[0]!);
    expect(memory().numTensors).toBe(before);
  });
});
