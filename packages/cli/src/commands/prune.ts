import { ConfigError, recipeKit, saveModel, type KitOptions, type Method } from 'niwaki';
import { InvalidArgumentError, Option, type Command } from 'commander';
import { changeModel, withChange, type Change, type ChangeFlags } from '../change-model.ts';
import { UsageError } from '../failure.ts';
import { number } from '../flags.ts';
import { checkKind } from '../open-model.ts';
import type { Result } from '../result.ts';
import type { Terminal } from '../terminal.ts';

interface PruneFlags extends ChangeFlags {
  readonly prune: string;
  readonly sparsity?: number;
  readonly pattern?: NOfM;
  readonly initial?: string;
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
  withChange(command, {
    description: 'set the entries of a model to 0 that matter least, as a Hugging Face folder',
    methods: 'wanda, sparsegpt and dsnot',
    own: (own) =>
      own
        .option('--prune <kind>', `one of ${kinds.join(', ')}`, 'wanda')
        .option('--sparsity <x>', 'part of the entries that becomes 0: from 0, below 1 (default: 0.5)', number)
        .option('--pattern <n:m>', 'keep n of every m entries of a row, such as 2:4, in place of --sparsity', pattern)
        .option('--initial <kind>', 'whose choice dsnot starts from (default: wanda)')
        .addOption(new Option('--dtype <type>', 'of the numbers in the file').choices(['f32', 'f16', 'bf16']).default('f32')),
  });

/** Prunes and saves the model with its zeros in place; the result says how many there are. */
export async function runPrune(flags: PruneFlags, terminal: Terminal): Promise<Result> {
  const method = prunerOf(flags);
  const { out, dtype } = flags;
  const change: Change = {
    method,
    label: 'pruning',
    free: '--prune magnitude',
    apply: async (model, placing) => {
      const { sparsity } = await recipeKit.pruneModel(model, method, placing);
      return { json: { sparsity }, text: `${(100 * sparsity).toFixed(1)} % of the entries are 0` };
    },
    save: ({ model, tokenizer }) => saveModel(model, out, { dtype, ...(tokenizer && { tokenizer }), signal: terminal.signal }),
  };
  return changeModel(flags, change, terminal);
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
