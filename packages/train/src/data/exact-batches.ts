import { contentHash, DataError } from '@niwaki/tensor';
import { languageBatch } from '@niwaki/engine';
import * as v from 'valibot';
import type { TrainData } from './train-data.ts';

const schema = v.pipe(
  v.array(v.pipe(v.array(v.pipe(v.array(v.pipe(v.number(), v.integer(), v.minValue(0))), v.minLength(1))), v.minLength(1))),
  v.minLength(1),
);

export const batchesWanted = 'Expected an array of batches, each an array of rows, each an array of token ids.';

/**
 * Exact batches of token ids, in this order, one optimizer step each: to compare with another trainer number by number.
 * Every token but a row's first is predicted. `batchSize` and `accumulate` do not apply.
 * @param json [batch][row][token]
 * @throws DataError naming the place of what is not a token id
 */
export function exactBatches(json: unknown, { vocabularySize, name = 'batches' }: { vocabularySize: number; name?: string }): TrainData {
  const parsed = v.safeParse(schema, json);
  if (!parsed.success) {
    const issue = parsed.issues[0];
    throw new DataError(`${name}: at [${v.getDotPath(issue) ?? ''}]: ${issue.message}`, {
      name,
      help: batchesWanted,
    });
  }
  const batches = parsed.output;
  const hash = contentHash();
  for (const rows of batches) for (const row of rows) hash.words(Int32Array.from(row));
  hash.text(JSON.stringify(batches.map((rows) => rows.length)));
  return {
    hash: hash.digest(),
    plan: () => ({
      stepsPerEpoch: batches.length,
      window: async (_epoch, step) => {
        const rows = batches[step]!;
        return {
          batches: [
            languageBatch(
              rows.map((ids) => ({ ids })),
              { vocabularySize },
            ),
          ],
          tokens: rows.reduce((sum, row) => sum + row.length, 0),
        };
      },
    }),
  };
}
