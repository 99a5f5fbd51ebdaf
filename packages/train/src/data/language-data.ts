import { checkOptions, contentHash, DataError } from '@niwaki/tensor';
import { languageBatch, type LanguageBatch } from '@niwaki/engine';
import { epochOrder } from './order.ts';
import type { Row } from './pack.ts';
import type { DataPlan, PlanOptions, TrainData } from './train-data.ts';

export interface LanguageData extends TrainData {
  readonly rows: readonly Row[];
  /** Input tokens of one epoch. */
  readonly tokens: number;
  /** Tokens predicted in one epoch. */
  readonly targets: number;
}

export interface LanguageDataOptions {
  readonly vocabularySize: number;
  /** A new order each epoch; default true. */
  readonly shuffle?: boolean;
}

/**
 * Rows as training data. An epoch visits each row once: rows in the epoch's order are cut into micro-batches of
 * `batchSize`, these into windows of `accumulate`; a window never reaches into the next epoch, and the short ones at the
 * end are used as they are.
 * Host memory: 12 bytes a token.
 */
export function languageData(rows: readonly Row[], options: LanguageDataOptions): LanguageData {
  checkOptions('languageData', options, ['vocabularySize', 'shuffle']);
  const { vocabularySize, shuffle = true } = options;
  if (rows.length === 0) throw new DataError('there is no row to train on', { rows: 0 });
  const hash = contentHash();
  hash.text(String(shuffle));
  for (const { ids, targets, starts } of rows) for (const values of [ids, targets, starts]) hash.words(values);
  const count = (of: (row: Row) => number): number => rows.reduce((sum, row) => sum + of(row), 0);
  return {
    rows,
    hash: hash.digest(),
    tokens: count(({ ids }) => ids.length),
    targets: count(({ targets }) => targets.reduce((sum, target) => sum + (target < 0 ? 0 : 1), 0)),
    plan: (planning) => planRows(rows, { ...planning, vocabularySize, shuffle }),
  };
}

function planRows(rows: readonly Row[], options: PlanOptions & Required<LanguageDataOptions>): DataPlan {
  const { batchSize, accumulate, seed, vocabularySize, shuffle } = options;
  let drawn: { epoch: number; order: readonly Row[] } | undefined;
  const orderOf = (epoch: number): readonly Row[] => {
    if (!shuffle) return rows;
    if (drawn?.epoch !== epoch) drawn = { epoch, order: epochOrder(rows.length, { seed, epoch }).map((index) => rows[index]!) };
    return drawn.order;
  };
  return {
    stepsPerEpoch: Math.ceil(rows.length / (batchSize * accumulate)),
    window: async (epoch, step) => {
      const size = batchSize * accumulate;
      const chosen = orderOf(epoch).slice(step * size, (step + 1) * size);
      const batches: LanguageBatch[] = [];
      for (let at = 0; at < chosen.length; at += batchSize)
        batches.push(languageBatch(chosen.slice(at, at + batchSize), { vocabularySize }));
      return { batches, tokens: chosen.reduce((sum, { ids }) => sum + ids.length, 0) };
    },
  };
}
