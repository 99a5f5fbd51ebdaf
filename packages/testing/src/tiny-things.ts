import { disposeBatch, languageBatch, type LanguageBatch } from '@niwaki/engine';
import type { Model } from '@niwaki/nn';
import { rows } from './contract-model.ts';
import { disposedAfterEach, type Disposed } from './disposed-after-each.ts';
import { tinyLlama } from './tiny-llama.ts';

export interface TinyThings {
  readonly things: Disposed;
  tiny(config?: Record<string, unknown>): Promise<Model>;
  batchOf(ids?: readonly (readonly number[])[]): LanguageBatch;
}

/** Tiny models and batches for them, freed after each test with all else that is pushed to `things`. */
export function tinyThings(): TinyThings {
  const things = disposedAfterEach();
  return {
    things,
    tiny: async (config = {}) => {
      const model = await tinyLlama(config);
      things.push(model);
      return model;
    },
    batchOf: (ids = rows) => {
      const batch = languageBatch(
        ids.map((row) => ({ ids: row })),
        { vocabularySize: 32 },
      );
      things.push({ dispose: () => disposeBatch(batch) });
      return batch;
    },
  };
}
