import type { Tensor } from '@niwaki/tensor';
import { causalLM, disposeBatch, languageBatch } from '@niwaki/engine';
import { tinyLlama } from '@niwaki/testing';
import { expect, it } from 'vitest';
import { evaluateBatch, languageData, packSamples, rowOf, type Row, type Sample } from '../src/index.ts';

const vocabularySize = 32;
const sample = (ids: readonly number[]): Sample => ({ kind: 'text', ids: Int32Array.from(ids), learn: new Uint8Array(ids.length).fill(1) });
// Sums of the same products in another order: a few units in the last place.
const tolerance = 1e-5;

async function lossesOf(rows: readonly Row[], options: { padTo?: number; chunkBytes?: number } = {}): Promise<number[]> {
  const model = await tinyLlama();
  const { padTo, ...rest } = options;
  const batch = languageBatch(rows, { vocabularySize, ...(padTo === undefined ? {} : { padTo }) });
  const losses = [...(await evaluateBatch(model, batch, causalLM(), rest))];
  disposeBatch(batch);
  model.dispose();
  return losses;
}

const expectClose = (given: readonly number[], expected: readonly number[]): void => {
  expect(given).toHaveLength(expected.length);
  for (const [i, value] of given.entries()) expect(Math.abs(value - expected[i]!)).toBeLessThan(tolerance);
};

it('trains the end of text in every row where padding has the same id', async () => {
  const rows = packSamples([sample([5, 6, 2]), sample([7, 2])], { context: 4, pack: false }).rows;
  const batch = languageBatch(rows, { vocabularySize, padTo: 4, padId: 2 });
  expect([...batch.tokenIds.dataSync()]).toEqual([5, 6, 2, 2, 7, 2, 2, 2]);
  expect([...batch.targets.dataSync()]).toEqual([6, 2, 2]);
  expect([...batch.targetRows.dataSync()]).toEqual([0, 1, 4]);
  // Padding sees nothing.
  expect([...batch.keysTo.dataSync()]).toEqual([1, 2, 3, 0, 1, 2, 0, 0]);
  disposeBatch(batch);
});

it('scores two packed documents as if each ran alone', async () => {
  const documents = [sample([5, 6, 7, 8, 9]), sample([10, 11, 12])];
  const packed = await lossesOf([rowOf(documents)]);
  const alone = await Promise.all(documents.map((each) => lossesOf([rowOf([each])])));
  expectClose(packed, alone.flat());
});

it('scores padded rows, and rows in chunks, as the rows alone', async () => {
  const rows = [sample([3, 4, 5, 6, 7, 8, 9, 10]), sample([11, 12])].map((each) => rowOf([each]));
  const alone = (await Promise.all(rows.map((row) => lossesOf([row])))).flat();
  expectClose(await lossesOf(rows, { padTo: 12 }), alone);
  // Three rows of logits at once.
  expectClose(await lossesOf(rows, { chunkBytes: 3 * vocabularySize * 4 }), alone);
});

it('gives the windows of an epoch the rows, the shorter ones at the end included', async () => {
  const samples = [2, 3, 4, 5, 6, 7, 8].map((length) => sample(Array.from({ length }, (_, i) => i + 1)));
  const data = languageData(packSamples(samples, { context: 8, pack: false }).rows, { vocabularySize, shuffle: false });
  const plan = data.plan({ batchSize: 2, accumulate: 2, seed: 0 });
  const shapes: number[][][] = [];
  for (let step = 0; step < plan.stepsPerEpoch; step++) {
    const { batches } = await plan.window(0, step);
    shapes.push(batches.map((batch) => (batch['tokenIds'] as Tensor).shape));
    for (const batch of batches) disposeBatch(batch);
  }
  expect(shapes).toEqual([
    [
      [2, 3],
      [2, 5],
    ],
    [
      [2, 7],
      [1, 8],
    ],
  ]);
});
