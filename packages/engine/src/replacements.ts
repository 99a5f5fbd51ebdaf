import { StateError } from '@niwaki/tensor';
import { disposeWeight, weightBytes, type ActivationQuantizer, type Weight } from '@niwaki/weights';
import type { Model, Site } from '@niwaki/nn';
import type { ApplyOptions, Made, Method } from './method.ts';

/** Weights and what rounds their inputs on their way into a model, and the way back. */
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
  { kind, makes }: Pick<Method, 'kind' | 'makes'>,
  sites: readonly Site[],
  { onProgress, undoBytes = defaultUndoBytes }: Pick<ApplyOptions, 'onProgress' | 'undoBytes'>,
): Replacements {
  const made = new Map<string, Made>();
  const keep = makes === 'input' || sites.reduce((bytes, site) => bytes + weightBytes(site.weight!), 0) <= undoBytes;
  const old = new Map<string, Weight>();
  const oldInputs = new Map<string, ActivationQuantizer | undefined>();
  const undos: (() => void)[] = [];
  const selected = new Set(sites);
  let done = 0;
  /** A site that two windows share is made twice: only what was there first is worth keeping. */
  const isFirst = (of: ReadonlyMap<string, unknown>, { path }: Site): boolean => keep && !of.has(path);
  return {
    made,
    put: (site, part) => {
      const { path } = site;
      const { weight, input, undo } = part;
      if (weight === undefined && input === undefined) throw new StateError(`internal: ${kind} made nothing for '${path}'`, { path });
      if (weight !== undefined) {
        const first = isFirst(old, site);
        if (first) old.set(path, site.weight!);
        model.replace(path, weight, { keep: first });
      }
      if (input !== undefined) {
        const first = isFirst(oldInputs, site);
        if (first) oldInputs.set(path, site.input);
        model.replaceInput(path, input, { keep: first });
      }
      // Beside the selected ones a method may round what enters products near them.
      if (selected.has(site) && !made.has(path)) done++;
      made.set(path, part);
      if (keep && undo !== undefined) undos.push(undo);
      onProgress?.({ done, total: sites.length, path });
    },
    undo: (error) => {
      for (const [path, weight] of old) if (made.has(path)) model.replace(path, weight); // disposes what was made
      for (const [path, input] of oldInputs) model.replaceInput(path, input);
      while (undos.length > 0) undos.pop()!();
      if (keep || made.size === 0) return error;
      return new StateError(`${kind} stopped after ${made.size} of ${sites.length} sites: ${messageOf(error)}`, {
        cause: error,
        replaced: [...made.keys()],
        help: 'The sites in `details.replaced` hold their new weights, the others the old ones. Run again over the rest, or load the model anew; `undoBytes` makes it take everything back.',
      });
    },
    settle: () => {
      for (const weight of old.values()) disposeWeight(weight);
      for (const input of oldInputs.values()) if (input !== undefined) disposeWeight(input);
    },
  };
}

export const messageOf = (error: unknown): string => (error instanceof Error ? error.message.split('\n')[0]! : String(error));
