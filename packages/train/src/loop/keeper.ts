import type { Parameter, Tensor } from '@niwaki/tensor';
import type { Model } from '@niwaki/nn';
import type { Step } from '@niwaki/engine';
import {
  CheckpointError,
  checkpointNames,
  loadCheckpoint,
  newestState,
  removeDrafts,
  saveCheckpoint,
  type RunState,
} from '../checkpoint/checkpoint.ts';
import type { RunFolder } from '../checkpoint/run-folder.ts';
import { advice, differencesOf, inWords, type RunIdentity } from '../checkpoint/run-identity.ts';
import { diskFolder } from '../checkpoint/disk-folder.ts';
import { adapterParameters } from './memory.ts';

export interface CheckpointOptions {
  /** A path on the disk (Node), or any folder. */
  readonly folder: string | RunFolder;
  /** Steps between checkpoints; default 100. The last step, and an abort, are always followed by one. */
  readonly every?: number;
  /** Checkpoints kept; default 2. */
  readonly keep?: number;
  /** Go on from the newest checkpoint of the folder, where there is one. Default false: begin anew, unless that would discard an unfinished run. */
  readonly resume?: boolean;
}

/** Saves and restores a run; knows nothing of steps and rates. */
export interface Keeper {
  readonly every: number;
  save(state: RunState): Promise<string>;
  /**
   * Puts the newest checkpoint into the model and the step; undefined where there is none.
   * @param sameSoFar whether nothing that was done would have been otherwise in a run of this many steps
   */
  restore(run: RunIdentity, sameSoFar: (saved: RunState) => boolean): Promise<RunState | undefined>;
}

export function createKeeper(
  { folder: where, every = 100, keep = 2, resume = false }: CheckpointOptions,
  model: Model,
  step: Step,
): Keeper {
  const folder = typeof where === 'string' ? diskFolder(where) : where;
  return {
    every,
    save: async (state) => {
      const parameters = new Map([...keptParameters(model)].map(([path, parameter]): [string, Tensor] => [path, parameter.read()]));
      return saveCheckpoint(folder, { state, parameters, optimizer: step.state() }, { keep });
    },
    restore: async (run, sameSoFar) => {
      await removeDrafts(folder);
      if (!resume) return clear(folder);
      const checkpoint = await loadCheckpoint(folder);
      if (checkpoint === undefined) return undefined;
      const { state, parameters, optimizer } = checkpoint;
      try {
        refuseOtherRun(state, run, { folder, sameSoFar });
        const wanted = checkFit(model, parameters, folder);
        step.restore(optimizer, state.updates);
        // Nothing fails from here on: a checkpoint that does not fit leaves the model as it was.
        for (const [path, value] of parameters) wanted.get(path)!.write(value);
      } catch (error) {
        for (const value of parameters.values()) if (!value.isDisposed) value.dispose();
        throw error;
      }
      return state;
    },
  };
}

/** A new run takes over the folder of a finished one; the checkpoints of an unfinished one are somebody's work. */
async function clear(folder: RunFolder): Promise<undefined> {
  const state = await newestState(folder);
  if (state !== undefined && state.attempt < state.run.steps) {
    throw new CheckpointError(`${folder.name} holds a run that stopped at step ${state.attempt} of ${state.run.steps}`, {
      folder: folder.name,
      attempt: state.attempt,
      steps: state.run.steps,
      help: 'Resume it, choose another folder, or remove its checkpoints to begin again.',
    });
  }
  for (const name of await checkpointNames(folder)) await folder.remove(name);
  return undefined;
}

/** What training changes, and what an adapter brings (frozen factors too): by path. */
function keptParameters(model: Model): Map<string, Parameter> {
  const all = [...model.parameters().values(), ...adapterParameters(model)];
  const adapters = adapterParameters(model);
  const changed = all.filter((parameter) => parameter.trainable || adapters.has(parameter));
  return new Map(changed.flatMap((parameter) => parameter.stored ?? [parameter]).map((parameter) => [parameter.path, parameter]));
}

function refuseOtherRun(
  saved: RunState,
  now: RunIdentity,
  { folder, sameSoFar }: { readonly folder: RunFolder; readonly sameSoFar: (saved: RunState) => boolean },
): void {
  const different = differencesOf(saved.run, now).filter(({ field }) => field !== 'steps' || !sameSoFar(saved));
  if (different.length === 0) return;
  throw new CheckpointError(`the checkpoint in ${folder.name} belongs to another run: ${different.map(inWords).join('; ')}`, {
    folder: folder.name,
    different,
    help: advice[different[0]!.field],
  });
}

/** The parameters that a checkpoint's values go to: by path, of the same shapes. */
function checkFit(model: Model, saved: ReadonlyMap<string, Tensor>, folder: RunFolder): ReadonlyMap<string, Parameter> {
  const wanted = keptParameters(model);
  const missing = [...wanted.keys()].filter((path) => !saved.has(path));
  const extra = [...saved.keys()].filter((path) => !wanted.has(path));
  const other = [...saved].filter(([path, value]) => wanted.has(path) && !isLike(value, wanted.get(path)!.read())).map(([path]) => path);
  if (missing.length + extra.length + other.length > 0) {
    throw new CheckpointError(
      `the checkpoint in ${folder.name} is of another model: ${missing.length} parameters missing, ${extra.length} unknown, ${other.length} of another shape`,
      {
        folder: folder.name,
        missing,
        extra,
        other,
        help: 'Load the same model with the same adapter before resuming.',
      },
    );
  }
  return wanted;
}

const isLike = (a: Tensor, b: Tensor): boolean => a.dtype === b.dtype && a.shape.join() === b.shape.join();
