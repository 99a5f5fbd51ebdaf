import { isCalibrated } from '@niwaki/engine';
import {
  calibrationFolder,
  calibrationWindows,
  disposeBatch,
  type Calibrate,
  type Loaded,
  type Method,
  type MethodProgress,
  type Placing,
  type TokenBatch,
  type WalkCheckpoint,
} from 'niwaki';
import type { Command } from 'commander';
import { UsageError } from './failure.ts';
import { count } from './flags.ts';
import { inCount } from './number.ts';
import { createProgress, type Progress } from './progress.ts';
import type { Terminal } from './terminal.ts';

/** Flags of commands whose methods may look at text. */
export interface CalibrationFlags {
  readonly calibrate?: string;
  readonly calibrateWindows?: number;
  readonly calibrateContext?: number;
  readonly checkpoint?: string;
  readonly resume?: boolean;
}

export const withCalibration = (command: Command, methods: string): Command =>
  command
    .option('--calibrate <file>', `text like what the model will see, .jsonl or plain, for ${methods}`)
    .option('--calibrate-windows <n>', 'windows of it, at even distances over the file (default: 32)', count)
    .option('--calibrate-context <n>', "tokens of a window (default: 256, or the model's context where that is less)", count)
    .option('--checkpoint <dir>', 'folder for what each block leaves, to go on from after a stop')
    .option('--resume', 'go on from what --checkpoint holds');

/** Whether the flags give a method what it needs, and nothing that it does not read. Before a model is loaded. */
export function checkCalibration(method: Method, flags: CalibrationFlags, free: string): void {
  const { calibrate, calibrateWindows, calibrateContext, checkpoint, resume } = flags;
  const { kind } = method;
  if (resume && checkpoint === undefined) {
    throw new UsageError('--resume goes on from what --checkpoint holds, which is not given', {
      help: 'Name the folder that the stopped run was given as --checkpoint.',
    });
  }
  if (isCalibrated(method)) {
    if (calibrate !== undefined) return;
    throw new UsageError(`${kind} chooses by what its inputs look like: give --calibrate, a text file`, {
      kind,
      help: `A few thousand tokens of text like what the model will see, never the text you measure with. Without text: ${free}.`,
    });
  }
  if ([calibrate, calibrateWindows, calibrateContext, checkpoint].every((flag) => flag === undefined)) return;
  throw new UsageError(`${kind} reads no text: leave --calibrate and its flags away`, { kind });
}

/** What a calibrated method has looked at. */
export interface Looked {
  readonly windows: number;
  readonly tokens: number;
}

export interface Applying<T> {
  readonly method: Method;
  readonly at: string | string[];
  /** For people: 'quantizing'. */
  readonly label: string;
  readonly flags: CalibrationFlags;
  /** What the file of the flags holds. */
  readonly text: string | undefined;
  run(placing: Placing): Promise<T>;
}

/** Runs a one-shot method with its calibration text, and tells how far it is: by blocks where it has text, else by matrices. */
export async function applyMethodTo<T>(
  { model, tokenizer }: Loaded,
  { method, at, label, flags, text, run }: Applying<T>,
  terminal: Terminal,
): Promise<{ readonly result: T; readonly looked?: Looked }> {
  const progress = createProgress(terminal, label);
  const placing = { at, seed: 0, signal: terminal.signal };
  if (text === undefined) {
    const onProgress = ({ done, total, path }: MethodProgress): void => progress.update(done, total, path);
    return { result: await run({ ...placing, onProgress }).finally(progress.stop) };
  }
  const { calibrate: name, calibrateWindows: windows, calibrateContext: context, checkpoint: folder, resume = false } = flags;
  const batches = calibrationWindows(text, tokenizer, model.info, {
    name: name!,
    ...(windows !== undefined && { windows }),
    ...(context !== undefined && { context }),
  });
  const looked = sizeOf(batches);
  terminal.err(`calibrating ${method.kind} with ${inCount(looked.windows)} windows, ${inCount(looked.tokens)} tokens\n`);
  const { tell, stop } = tellCalibration(terminal, progress);
  try {
    const checkpoint = folder === undefined ? undefined : tellingResume(calibrationFolder(folder, { resume }), terminal);
    return { result: await run({ ...placing, calibrate: { batches, ...tell, ...(checkpoint && { checkpoint }) } }), looked };
  } finally {
    stop();
    batches.forEach(disposeBatch);
  }
}

const tellingResume = (kept: WalkCheckpoint, terminal: Terminal): WalkCheckpoint => ({
  ...kept,
  begin: async (walk) => {
    const done = await kept.begin(walk);
    if (done > 0) terminal.err(`resumed after ${done} of ${walk.windows} windows\n`);
    return done;
  },
});

const sizeOf = (batches: readonly TokenBatch[]): Looked => ({
  windows: batches.length,
  tokens: batches.reduce((sum, { tokenIds }) => sum + tokenIds.size, 0),
});

/** A line of blocks, and for methods that fit a line of steps for each window. */
function tellCalibration(terminal: Terminal, blocks: Progress): { tell: Pick<Calibrate, 'onBlock' | 'onFit'>; stop(): void } {
  let steps: Progress | undefined;
  const stop = (): void => {
    steps?.stop();
    steps = undefined;
  };
  return {
    tell: {
      onFit: ({ window, done, total, loss }) => {
        steps ??= createProgress(terminal, `fitting ${window.join(', ')}`);
        steps.update(done, total, `loss ${loss.toFixed(4)}`);
        if (done === total) stop();
      },
      onBlock: ({ done, total, path }) => blocks.update(done, total, path),
    },
    stop: () => {
      stop();
      blocks.stop();
    },
  };
}
