import { recipeKit, type Loaded, type Method, type Model, type Placing } from 'niwaki';
import { Option, type Command } from 'commander';
import { applyMethodTo, checkCalibration, withCalibration, type CalibrationFlags } from './calibration.ts';
import { patterns, withCommon, type CommonFlags } from './flags.ts';
import { loadWithProgress, openDevice } from './open-model.ts';
import { checkOut } from './out-folder.ts';
import type { Result } from './result.ts';
import { inWords, scorerOf, withScoring, type ScoringFlags } from './scoring.ts';
import type { Terminal } from './terminal.ts';

/** Flags of commands that change a model and save it. */
export interface ChangeFlags extends CommonFlags, CalibrationFlags, ScoringFlags {
  readonly model: string;
  readonly at: string | string[];
  readonly out: string;
}

interface Described {
  readonly description: string;
  /** Which methods need text, for people. */
  readonly methods: string;
  /** The command's own flags. */
  own(command: Command): Command;
}

export const withChange = (command: Command, { description, methods, own }: Described): Command =>
  withScoring(
    withCalibration(
      own(
        withCommon(command)
          .description(description)
          .requiredOption('--model <m>', 'a folder, a .gguf, a .safetensors, a URL, or a known name (niwaki-tiny)')
          .requiredOption('--out <dir>', 'folder of the result'),
      ).addOption(
        new Option('--at <patterns>', 'which matrices: paths or patterns, separated by commas').argParser(patterns).default('all-linear'),
      ),
      methods,
    ),
  );

export interface Change {
  readonly method: Method;
  /** For people: 'quantizing'. */
  readonly label: string;
  /** What does the same without text, for people. */
  readonly free: string;
  /** Changes the model. @returns what is told of that; a text without an end of line */
  apply(model: Model, placing: Placing): Promise<Result>;
  save(loaded: Loaded): Promise<void>;
}

/** One run of a command: device, model, score, change, score, save. Nothing is loaded before the flags are found right. */
export async function changeModel(flags: ChangeFlags, { method, label, free, apply, save }: Change, terminal: Terminal): Promise<Result> {
  checkCalibration(method, flags, free);
  await checkOut(flags.out);
  const text = flags.calibrate === undefined ? undefined : await recipeKit.readText(flags.calibrate);
  const score = await scorerOf(flags, terminal);
  await openDevice(flags, terminal);
  const loaded = await loadWithProgress(flags.model, terminal);
  const { model } = loaded;
  try {
    const before = await score(loaded, 'before');
    const run = (placing: Placing): Promise<Result> => apply(model, placing);
    const { result, looked } = await applyMethodTo(loaded, { method, at: flags.at, label, flags, text, run }, terminal);
    const after = await score(loaded, 'after');
    await save(loaded);
    const perplexity = before === undefined ? undefined : { before, after: after! };
    const { out } = flags;
    return {
      json: { out, ...result.json, ...(looked && { calibration: { ...looked } }), ...(perplexity && { perplexity }) },
      text: `${perplexity ? inWords(perplexity) : ''}${result.text}, saved in ${out}\n`,
    };
  } finally {
    model.dispose();
  }
}
