import { expect, it } from 'vitest';
import { memory } from '@niwaki/tensor';
import { blockwiseBackprop, causalLM, disposeBatch, languageBatch, type LanguageBatch } from '@niwaki/engine';
import { tinyLlama } from '../../testing/src/index.ts';
import { apart, collect } from './support/collect.ts';

const vocabularySize = 32;
const lists = async (batch: LanguageBatch): Promise<{ rows: number[]; targets: number[] }> => ({
  rows: [...(await batch.targetRows.data())],
  targets: [...(await batch.targets.data())],
});

it('predicts the next token of each row, never across its end or into padding', async () => {
  const before = memory().numTensors;
  const batch = languageBatch([{ ids: [5, 6, 7] }, { ids: [9, 2] }], { vocabularySize });
  expect(await lists(batch)).toEqual({ rows: [0, 1, 3], targets: [6, 7, 2] });
  expect(causalLM().weight(batch)).toBe(3);
  disposeBatch(batch);
  expect(memory().numTensors).toBe(before);
});

it('counts rows from the start of the padding on the left', async () => {
  const batch = languageBatch([{ ids: [5, 6, 7] }, { ids: [9, 2] }], { vocabularySize, padTo: 4, padSide: 'left' });
  expect(await lists(batch)).toEqual({ rows: [1, 2, 6], targets: [6, 7, 2] });
  disposeBatch(batch);
});

it('does not predict the first token of a document from the one before it', async () => {
  const batch = languageBatch([{ ids: [5, 6, 7, 8, 9], starts: [0, 0, 0, 3, 3] }], { vocabularySize });
  expect(await lists(batch)).toEqual({ rows: [0, 1, 3], targets: [6, 7, 9] });
  expect([...(await batch.keysFrom.data())]).toEqual([0, 0, 0, 3, 3]);
  expect(batch.positions).toEqual([0, 1, 2, 0, 1]);
  disposeBatch(batch);
});

it('takes given targets, negative ones as not counted', async () => {
  const batch = languageBatch([{ ids: [5, 6, 7], targets: [-100, 7, -1] }], { vocabularySize });
  expect(await lists(batch)).toEqual({ rows: [1], targets: [7] });
  disposeBatch(batch);
});

it('trains the end of text once where padding has the same id', async () => {
  const batch = languageBatch([{ ids: [5, 6, 2] }, { ids: [7, 2] }], { vocabularySize, padTo: 4, padId: 2 });
  expect(await lists(batch)).toEqual({ rows: [0, 1, 4], targets: [6, 2, 2] });
  disposeBatch(batch);
});

it('refuses ids and targets outside the vocabulary, and arrays of another length', () => {
  const make = (row: Parameters<typeof languageBatch>[0][number]) => () => languageBatch([row], { vocabularySize });
  expect(make({ ids: [5, 32] })).toThrow(/32 at/);
  expect(make({ ids: [5, 6], targets: [40, -1] })).toThrow(/targets: token id 40/);
  expect(make({ ids: [5, 6], targets: [6] })).toThrow(/row 0 has 2 ids and 1 targets/);
  expect(make({ ids: [5, 6, 7], starts: [0, 0, 1] })).toThrow(/starts at 1, the one before at 0/);
});

it.each(['left', 'right'] as const)('gives the loss and gradients of rows alone when they are padded %s', async (padSide) => {
  const model = await tinyLlama();
  const rows = [{ ids: [3, 17, 5, 29, 8, 1, 22, 14] }, { ids: [9] }, { ids: [4, 4, 12] }];
  const padded = languageBatch(rows, { vocabularySize, padSide, padTo: 11, padId: 7 });
  const together = await collect(blockwiseBackprop(), model, padded);
  const sums = new Map<string, Float32Array>();
  let loss = 0;
  for (const row of [rows[0]!, rows[2]!]) {
    const batch = languageBatch([row], { vocabularySize });
    const part = batch.targets.size / padded.targets.size;
    const alone = await collect(blockwiseBackprop(), model, batch);
    disposeBatch(batch);
    loss += alone.loss * part;
    for (const [path, values] of alone.gradients) {
      const sum = sums.get(path) ?? new Float32Array(values.length);
      sums.set(
        path,
        sum.map((value, i) => value + values[i]! * part),
      );
    }
  }
  expect(Math.abs(together.loss - loss)).toBeLessThan(1e-5);
  expect(apart(together.gradients, sums, 1e-5)).toEqual([]);
  disposeBatch(padded);
  model.dispose();
});
