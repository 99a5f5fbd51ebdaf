import { ConfigError, recipeKit, saveQuantized, weightBytes, type KitOptions, type Method, type Model } from 'niwaki';
import { InvalidArgumentError, type Command } from 'commander';
import { changeModel, withChange, type Change, type ChangeFlags } from '../change-model.ts';
import { UsageError } from '../failure.ts';
import { count, requantizeFlag } from '../flags.ts';
import { inBytes } from '../number.ts';
import { checkKind } from '../open-model.ts';
import type { Result } from '../result.ts';
import type { Terminal } from '../terminal.ts';

interface QuantizeFlags extends ChangeFlags {
  readonly quantize: string;
  readonly bits?: number;
  readonly groupSize?: number | 'row';
  readonly activationBits?: number;
  readonly doubleQuant: boolean;
  readonly requantize?: boolean;
}

const codes = ['--no-double-quant'];
const integers = ['--bits', '--group-size'];
/** What has a format on disk, and the flags it takes. */
const takes: Readonly<Record<string, readonly string[]>> = {
  nf4: codes,
  fp4: codes,
  rtn: integers,
  gptq: integers,
  awq: integers,
  cbq: integers,
};

function groupSize(text: string): number | 'row' {
  if (text === 'row') return text;
  try {
    return count(text);
  } catch {
    throw new InvalidArgumentError("expected a whole number of at least 1, or 'row'");
  }
}

export const quantizeFlags = (command: Command): Command =>
  withChange(command, {
    description: 'store a model in less, as a Hugging Face folder',
    methods: 'gptq, awq and cbq',
    own: (own) =>
      own
        .option('--quantize <kind>', `one of ${Object.keys(takes).join(', ')}`, 'nf4')
        .option('--bits <n>', 'of a code, for rtn, gptq, awq and cbq: 2, 3, 4 or 8 (default: 4)', count)
        .option('--group-size <n>', "entries that share a scale: a multiple of 8, or 'row' (default: 64)", groupSize)
        .option('--activation-bits <n>', 'also round what the matrices multiply with, per token: 2 to 8 (default: floats)', count)
        .option('--no-double-quant', 'keep the scales of nf4 and fp4 in 32 bits')
        .option(...requantizeFlag),
  });

/** Quantizes and saves; the result says what it weighed and weighs. */
export async function runQuantize(flags: QuantizeFlags, terminal: Terminal): Promise<Result> {
  const method = quantizerOf(flags);
  const rounding = roundingOf(flags);
  const { signal } = terminal;
  const change: Change = {
    method,
    label: 'quantizing',
    free: '--quantize rtn, nf4 or fp4',
    apply: async (model, placing) => {
      const before = bytesOf(model);
      await recipeKit.quantizeModel(model, method, placing);
      if (rounding !== undefined) await recipeKit.quantizeModel(model, rounding, { at: flags.at, seed: 0, signal });
      const after = bytesOf(model);
      return { json: { before, after }, text: `${inBytes(before)} → ${inBytes(after)}` };
    },
    save: ({ model, tokenizer }) => saveQuantized(model, flags.out, { ...(tokenizer && { tokenizer }), signal }),
  };
  return changeModel(flags, change, terminal);
}

/** The method, where its flags are its own and in range. */
function quantizerOf(flags: QuantizeFlags): Method {
  const { quantize: kind, bits, groupSize: size, activationBits, doubleQuant, requantize } = flags;
  checkKind('--quantize', kind, Object.keys(takes));
  const given = [
    ...(bits === undefined ? [] : ['--bits']),
    ...(size === undefined ? [] : ['--group-size']),
    ...(doubleQuant ? [] : ['--no-double-quant']),
  ];
  const foreign = given.find((flag) => !takes[kind]!.includes(flag));
  if (foreign !== undefined) {
    throw new UsageError(`${kind} has no ${foreign}`, { kind, flag: foreign, help: `It takes ${takes[kind]!.join(' and ')}.` });
  }
  const options: KitOptions = {
    ...(bits !== undefined && { bits }),
    ...(size !== undefined && { groupSize: size }),
    ...(!doubleQuant && { doubleQuant }),
    ...(requantize && { requantize }),
    // Files have no place for factors on the input: they go into what comes before.
    ...(kind === 'awq' && { fold: true }),
    ...(kind === 'cbq' && activationBits !== undefined && { activations: { bits: activationBits } }),
  };
  return made(kind, options);
}

/** Activations are rounded behind the weights; cbq rounds them as it fits. */
function roundingOf({ quantize: kind, activationBits: bits }: QuantizeFlags): Method | undefined {
  return kind === 'cbq' || bits === undefined ? undefined : made('activations', { bits });
}

function made(kind: string, options: KitOptions): Method {
  try {
    return recipeKit.quantize[kind]!(options);
  } catch (error) {
    if (!ConfigError.isInstance(error)) throw error;
    throw new UsageError(error.message, { cause: error });
  }
}

/** Bytes of the model's matrices, tied ones once. */
function bytesOf(model: Model): number {
  const weights = new Set(model.stages().flatMap(({ sites }) => sites.flatMap(({ weight }) => (weight === undefined ? [] : [weight]))));
  return [...weights].reduce((sum, weight) => sum + weightBytes(weight), 0);
}
