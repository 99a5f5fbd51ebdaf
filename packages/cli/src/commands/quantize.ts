import { recipeKit, saveQuantized, weightBytes, type Model } from 'niwaki';
import { Option, type Command } from 'commander';
import { patterns, withCommon, type CommonFlags } from '../flags.ts';
import { inBytes } from '../number.ts';
import { checkQuantizer, loadWithProgress, openDevice } from '../open-model.ts';
import type { Result } from '../result.ts';
import type { Terminal } from '../terminal.ts';

interface QuantizeFlags extends CommonFlags {
  readonly model: string;
  readonly quantize: string;
  readonly at: string | string[];
  readonly doubleQuant: boolean;
  readonly out: string;
}

const kinds = Object.keys(recipeKit.quantize).join(', ');

export const quantizeFlags = (command: Command): Command =>
  withCommon(command)
    .description('store a model in less, as a Hugging Face folder')
    .requiredOption('--model <m>', 'a folder, a .gguf, a .safetensors, a URL, or a known name (niwaki-tiny)')
    .requiredOption('--out <dir>', 'folder of the result')
    .option('--quantize <kind>', `one of ${kinds}`, 'nf4')
    .addOption(
      new Option('--at <patterns>', 'which matrices: paths or patterns, separated by commas').argParser(patterns).default('all-linear'),
    )
    .option('--no-double-quant', 'keep the scales of nf4 and fp4 in 32 bits');

/** Quantizes and saves; the result says what it weighed and weighs. */
export async function runQuantize(flags: QuantizeFlags, terminal: Terminal): Promise<Result> {
  checkQuantizer(flags.quantize);
  await openDevice(flags, terminal);
  const { signal } = terminal;
  const { model, tokenizer } = await loadWithProgress(flags.model, terminal);
  try {
    const before = bytesOf(model);
    const options = flags.doubleQuant ? {} : { doubleQuant: false };
    await recipeKit.quantizeModel(model, recipeKit.quantize[flags.quantize]!(options), { at: flags.at, seed: 0, signal });
    const after = bytesOf(model);
    await saveQuantized(model, flags.out, { ...(tokenizer && { tokenizer }), signal });
    return { json: { out: flags.out, before, after }, text: `${inBytes(before)} → ${inBytes(after)}, saved in ${flags.out}\n` };
  } finally {
    model.dispose();
  }
}

/** Bytes of the model's matrices, tied ones once. */
function bytesOf(model: Model): number {
  const weights = new Set(model.stages().flatMap(({ sites }) => sites.flatMap(({ weight }) => (weight === undefined ? [] : [weight]))));
  return [...weights].reduce((sum, weight) => sum + weightBytes(weight), 0);
}
