import type { RunFolder } from '../checkpoint/run-folder.ts';
import type { StepEvent } from '../loop/events.ts';
import type { Recipe } from './recipe.ts';

const log = 'run.jsonl';

/** The record of a run in its folder: `recipe.json`, and `run.jsonl` with a line a step. */
export interface RunLog {
  step(event: StepEvent): Promise<void>;
  /** Drops the lines after a step: those of steps that will be taken again. */
  resume(step: number): Promise<void>;
}

/**
 * Begins with the first step, or where a run goes on: one that is refused before that leaves the recipe and the log of the run
 * that the folder holds.
 */
export function openRunLog(folder: RunFolder, recipe: Recipe): RunLog {
  const encode = (text: string): Uint8Array => new TextEncoder().encode(text);
  let begun = false;
  const keep = async (last: number): Promise<void> => {
    begun = true;
    await folder.write('recipe.json', encode(`${JSON.stringify(recipe, undefined, 2)}\n`));
    const bytes = (await folder.read(log)) ?? new Uint8Array();
    const lines = new TextDecoder().decode(bytes).split('\n');
    await folder.write(
      log,
      encode(
        lines
          .filter((line) => stepOf(line) <= last)
          .map((line) => `${line}\n`)
          .join(''),
      ),
    );
  };
  return {
    resume: keep,
    step: async ({ step, loss, gradNorm, learningRate, tokensPerSecond, tokens, targets, applied, memory }) => {
      if (!begun) await keep(-1);
      const line = { step, loss, gradNorm, learningRate, tokensPerSecond, tokens, targets, applied, memory };
      await folder.append(log, encode(`${JSON.stringify(line)}\n`));
    },
  };
}

/** The step of a line; Infinity for one that a killed process left half written. */
function stepOf(line: string): number {
  try {
    const { step } = JSON.parse(line) as { step?: unknown };
    return typeof step === 'number' ? step : Infinity;
  } catch {
    return Infinity;
  }
}
