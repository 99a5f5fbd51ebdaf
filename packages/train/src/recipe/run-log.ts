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

/** Writes the recipe; the log is begun with the first step, so that a resumed run finds what was there. */
export async function openRunLog(folder: RunFolder, recipe: Recipe): Promise<RunLog> {
  const encode = (text: string): Uint8Array => new TextEncoder().encode(text);
  let begun = false;
  const keep = async (last: number): Promise<void> => {
    begun = true;
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
  await folder.write('recipe.json', encode(`${JSON.stringify(recipe, undefined, 2)}\n`));
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
