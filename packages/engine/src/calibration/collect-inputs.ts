import type { Batch } from '@niwaki/weights';
import type { Model, Site } from '@niwaki/nn';
import type { Collected, Collectors } from './collector.ts';
import { createLends } from './lends.ts';
import { calibrationBatches } from './streams.ts';
import { openWindow } from './window.ts';

export interface InputStatistics<C extends Collectors> {
  readonly of: ReadonlyMap<Site, Collected<C>>;
  /** Frees the results. */
  release(): void;
}

/**
 * Statistics of the inputs of sites of a whole model, which stays as it is: one forward a batch, as far as the last site,
 * each distinct input taken once. For choices over all layers at once; methods that go block by block name `collect`.
 * @param batches the caller's; all rows but padding count
 */
export async function collectInputs<C extends Collectors>(
  model: Model,
  sites: readonly Site[],
  collectors: C,
  { batches, signal, kind }: { readonly batches: readonly Batch[]; readonly signal?: AbortSignal; readonly kind: string },
): Promise<InputStatistics<C>> {
  const prepared = await calibrationBatches(batches);
  const { window, close } = openWindow({
    model,
    range: [0, model.stages().length],
    sites,
    leaving: new Set(),
    lends: createLends(model),
    batches: prepared.batches,
    inputs: prepared.batches.map(() => ({})),
    replace: () => {},
    kind,
    ...(signal && { signal }),
  });
  try {
    return { of: await window.collect(sites, collectors), release: close };
  } catch (error) {
    close();
    throw error;
  } finally {
    prepared.dispose();
  }
}
