import { StateError } from '@niwaki/tensor';
import { disposeWeight, weightBytes, type Weight } from '@niwaki/weights';
import type { Model, Site } from '@niwaki/nn';
import type { ApplyOptions, Made } from './method.ts';

/** Weights on their way into a model, and the way back. */
export interface Replacements {
  readonly made: ReadonlyMap<string, Made>;
  /** Puts what was made at its site and reports it. */
  put(site: Site, part: Made): void;
  /** After a failure: the old weights back where they are kept. @returns what to throw */
  undo(error: unknown): unknown;
  /** After the last one: old weights go. */
  settle(): void;
}

const defaultUndoBytes = 256 * 2 ** 20;

/** Old weights are kept for taking everything back as long as all of them fit in `undoBytes`. */
export function createReplacements(
  model: Model,
  kind: string,
  sites: readonly Site[],
  { onProgress, undoBytes = defaultUndoBytes }: Pick<ApplyOptions, 'onProgress' | 'undoBytes'>,
): Replacements {
  const made = new Map<string, Made>();
  const keep = sites.reduce((bytes, site) => bytes + weightBytes(site.weight!), 0) <= undoBytes;
  const old = new Map<string, Weight>();
  const undos: (() => void)[] = [];
  return {
    made,
    put: (site, part) => {
      if (part.weight === undefined) throw new StateError(`internal: ${kind} made no weight for '${site.path}'`, { path: site.path });
      // A site that two windows share is made twice: only the first weight is worth keeping.
      const first = keep && !old.has(site.path);
      if (first) old.set(site.path, site.weight!);
      model.replace(site.path, part.weight, { keep: first });
      made.set(site.path, part);
      if (keep && part.undo !== undefined) undos.push(part.undo);
      onProgress?.({ done: made.size, total: sites.length, path: site.path });
    },
    undo: (error) => {
      for (const [path, weight] of old) if (made.has(path)) model.replace(path, weight); // disposes what was made
      for (const undo of undos.splice(0).reverse()) undo();
      if (keep || made.size === 0) return error;
      return new StateError(`${kind} stopped after ${made.size} of ${sites.length} sites: ${messageOf(error)}`, {
        cause: error,
        replaced: [...made.keys()],
        help: 'The sites in `details.replaced` hold their new weights, the others the old ones. Run again over the rest, or load the model anew; `undoBytes` makes it take everything back.',
      });
    },
    settle: () => {
      for (const weight of old.values()) disposeWeight(weight);
    },
  };
}

export const messageOf = (error: unknown): string => (error instanceof Error ? error.message.split('\n')[0]! : String(error));
