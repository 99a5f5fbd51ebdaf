import { ConfigError, recipeKit, saveModel, type KitOptions, type Method } from 'niwaki';
import { InvalidArgumentError, Option, type Command } from 'commander';
import { applyMethodTo, checkCalibration, withCalibration, type CalibrationFlags } from '../calibration.ts';
import { UsageError } from '../failure.ts';
import { number, patterns, withCommon, type CommonFlags } from '../flags.ts';
import { checkKind, loadWithProgress, openDevice } from '../open-model.ts';
import type { Result } from '../result.ts';
import { inWords, scorerOf, withScoring, type ScoringFlags } from '../scoring.ts';
import type { Terminal } from '../terminal.ts';

interface PruneFlags extends CommonFlags, CalibrationFlags, ScoringFlags {
  readonly model: string;
  readonly prune: string;
  readonly at: string | string[];
  readonly sparsity?: number;
  readonly pattern?: NOfM;
  readonly initial?: string;
  readonly out: string;
  readonly dtype: 'f32' | 'f16' | 'bf16';
}

interface NOfM {
  readonly n: number;
  readonly m: number;
}

function pattern(text: string): NOfM {
  const parts = /^(\d+):(\d+)$/.exec(text);
  if (parts === null) throw new InvalidArgumentError('expected n:m, such as 2:4');
  return { n: Number(parts[1]), m: Number(parts[2]) };
}

const kinds = Object.keys(recipeKit.prune);

export const pruneFlags = (command: Command): Command =>
  withScoring(
    withCalibration(
      withCommon(command)
        .description('set the entries of a model to 0 that matter least, as a Hugging Face folder')
        .requiredOption('--model <m>', 'a folder, a .gguf, a .safetensors, a URL, or a known name (niwaki-tiny)')
        .requiredOption('--out <dir>', 'folder of the result')
        .option('--prune <kind>', `one of ${kinds.join(', ')}`, 'wanda')
        .option('--sparsity <x>', 'part of the entries that becomes 0: from 0, below 1 (default: 0.5)', number)
        .option('--pattern <n:m>', 'keep n of every m entries of a row, such as 2:4, in place of --sparsity', pattern)
        .option('--initial <kind>', 'whose choice dsnot starts from (default: wanda)')
        .addOption(
          new Option('--at <patterns>', 'which matrices: paths or patterns, separated by commas').argParser(patterns).default('all-linear'),
        )
        .addOption(new Option('--dtype <type>', 'of the numbers in the file').choices(['f32', 'f16', 'bf16']).default('f32')),
      'wanda, sparsegpt and dsnot',
    ),
  );

/** Prunes and saves the model with its zeros in place; the result says how many there are. */
export async function runPrune(flags: PruneFlags, terminal: Terminal): Promise<Result> {
  const method = prunerOf(flags);
  checkCalibration(method, flags, '--prune magnitude');
  const text = flags.calibrate === undefined ? undefined : await recipeKit.readText(flags.calibrate);
  const score = await scorerOf(flags, terminal);
  await openDevice(flags, terminal);
  const { signal } = terminal;
  const loaded = await loadWithProgress(flags.model, terminal);
  const { model, tokenizer } = loaded;
  try {
    const was = await score(loaded, 'before');
    const { result, looked } = await applyMethodTo(
      loaded,
      { method, at: flags.at, label: 'pruning', flags, text, run: (placing) => recipeKit.pruneModel(model, method, placing) },
      terminal,
    );
    const is = await score(loaded, 'after');
    await saveModel(model, flags.out, { dtype: flags.dtype, ...(tokenizer && { tokenizer }), signal });
    const { sparsity } = result;
    const perplexity = was === undefined ? undefined : { before: was, after: is! };
    return {
      json: { out: flags.out, sparsity, ...(looked && { calibration: { ...looked } }), ...(perplexity && { perplexity }) },
      text: `${perplexity ? inWords(perplexity) : ''}${(100 * sparsity).toFixed(1)} % of the entries are 0, saved in ${flags.out}\n`,
    };
  } finally {
    model.dispose();
  }
}

/** The method, where its flags are in range. */
function prunerOf({ prune: kind, sparsity, pattern: kept, initial }: PruneFlags): Method {
  checkKind('--prune', kind, kinds);
  if (sparsity !== undefined && kept !== undefined) throw new UsageError('give --sparsity or --pattern, not both', { sparsity, ...kept });
  if (initial !== undefined && kind !== 'dsnot')
    throw new UsageError(`--initial is for dsnot; ${kind} starts from nothing`, { kind, initial });
  const amount: KitOptions = { ...(sparsity !== undefined && { sparsity }), ...kept };
  try {
    return recipeKit.prune[kind]!(kind === 'dsnot' ? { initial: { kind: initial ?? 'wanda', ...amount } } : amount);
  } catch (error) {
    if (!ConfigError.isInstance(error)) throw error;
    throw new UsageError(error.message, { cause: error });
  }
}
