import { expect } from 'vitest';
import {
  applyMethod,
  disposeBatch,
  type Calibrate,
  type Method,
  type WalkCheckpoint,
  type WalkIdentity,
  type WindowRecord,
} from '@niwaki/engine';
import { tokenBatch, type Model } from '@niwaki/nn';
import { AbortError, memory } from '@niwaki/tensor';
import { bytesOf, logits } from './contract-model.ts';
import { tinyLlama } from './tiny-llama.ts';

/** Records as they would come from a file: plain data, and of lent forms the last ones alone. */
export interface KeptWalk extends WalkCheckpoint {
  readonly windows: WindowRecord[];
  walk?: WalkIdentity;
}

export function keptWalk(): KeptWalk {
  const windows: WindowRecord[] = [];
  const kept: KeptWalk = {
    windows,
    begin: async (walk) => {
      kept.walk ??= structuredClone(walk);
      expect(walk).toEqual(kept.walk);
      return windows.length;
    },
    read: async (window) => structuredClone(windows[window]!),
    write: async (window, record) => {
      expect(window).toBe(windows.length);
      const before = windows.at(-1);
      if (before !== undefined) windows[window - 1] = { ...before, lent: {} };
      windows.push(structuredClone(record));
    },
  };
  return kept;
}

/** Four blocks whose widths are multiples of every group that methods take. */
export const fourBlocks = { num_hidden_layers: 4, hidden_size: 16, head_dim: 4, intermediate_size: 32 };

/** Paths of what differs. */
const differing = (a: ReadonlyMap<string, string>, b: ReadonlyMap<string, string>): string[] =>
  [...new Set([...a.keys(), ...b.keys()])].filter((path) => a.get(path) !== b.get(path));

/**
 * A walk that is stopped after each window, and begins each time on the model as it was loaded, must end where one without
 * a stop ends: all stored bytes, and the outputs.
 * @returns windows walked
 */
export async function expectNoTraceOfStops(make: () => Method, config: Record<string, unknown> = fourBlocks): Promise<number> {
  const tensors = memory().numTensors;
  const rows = [0, 1].map((b) => Array.from({ length: 9 }, (_, t) => (t * (b + 1) + (t % 3) * b) % 32));
  const batches = rows.map((row) => tokenBatch([row], { vocabularySize: 32 }));
  const walk = async (model: Model, calibrate: Omit<Calibrate, 'batches'>, signal?: AbortSignal): Promise<void> =>
    void (await applyMethod(model, make(), { at: 'all-linear', calibrate: { batches, ...calibrate }, ...(signal && { signal }) }));
  const stored = (model: Model): Promise<Map<string, string>> => bytesOf(model.parameters().values());
  const model = await tinyLlama(config);
  const given = await stored(model);
  await walk(model, {});
  const [whole, outputs] = [await stored(model), await logits(model)];
  model.dispose();
  const expectWhole = async (other: Model): Promise<void> => {
    expect(differing(await stored(other), whole)).toEqual([]);
    expect(await logits(other)).toEqual(outputs);
    other.dispose();
  };

  const checkpoint = keptWalk();
  let stops = 0;
  for (;;) {
    const again = await tinyLlama(config);
    const stop = new AbortController();
    let [last, seen] = [false, 0];
    const onBlock: Calibrate['onBlock'] = ({ done, total }) => {
      seen = done;
      last = done === total;
      if (!last) stop.abort();
    };
    const stopped = await walk(again, { checkpoint, onBlock }, stop.signal).then(
      () => false,
      (error: unknown) => {
        if (!(error instanceof AbortError)) throw error;
        return true;
      },
    );
    expect([seen, stopped]).toEqual([stops + 1, !last]);
    stops++;
    if (last) {
      await expectWhole(again);
      break;
    }
    // A stop takes back what it did.
    expect(differing(await stored(again), given)).toEqual([]);
    again.dispose();
  }
  // All windows are kept: nothing is left to walk, and the result is there again.
  const finished = await tinyLlama(config);
  await walk(finished, {
    checkpoint,
    onBlock: () => {
      throw new Error('a window was walked');
    },
  });
  await expectWhole(finished);
  batches.forEach(disposeBatch);
  expect(memory().numTensors).toBe(tensors);
  return stops;
}
