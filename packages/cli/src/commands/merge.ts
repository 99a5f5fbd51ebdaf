import { loadAdapter, mergeAndUnload, saveModel } from 'niwaki';
import { Option, type Command } from 'commander';
import { withCommon, type CommonFlags } from '../flags.ts';
import { loadWithProgress, openDevice } from '../open-model.ts';
import type { Result } from '../result.ts';
import type { Terminal } from '../terminal.ts';

interface MergeFlags extends CommonFlags {
  readonly model: string;
  readonly adapter: string;
  readonly out: string;
  readonly dtype: 'f32' | 'f16' | 'bf16';
}

export const mergeFlags = (command: Command): Command =>
  withCommon(command)
    .description('write an adapter into its model, as a Hugging Face folder')
    .requiredOption('--model <m>', 'a folder, a .gguf, a .safetensors, a URL, or a known name (niwaki-tiny)')
    .requiredOption('--adapter <dir>', 'a PEFT adapter')
    .requiredOption('--out <dir>', 'folder of the result')
    .addOption(new Option('--dtype <type>', 'of the numbers in the file').choices(['f32', 'f16', 'bf16']).default('f32'));

export async function runMerge(flags: MergeFlags, terminal: Terminal): Promise<Result> {
  await openDevice(flags, terminal);
  const { signal } = terminal;
  const warn = ({ message }: { message: string }): void => terminal.err(`warning: ${message}\n`);
  const { model, tokenizer } = await loadWithProgress(flags.model, terminal);
  try {
    const { name } = await loadAdapter(model, flags.adapter, { signal, onWarning: warn });
    const { sites, warnings } = await mergeAndUnload(model, name, { into: 'dense', dtype: flags.dtype });
    warnings.forEach(warn);
    await saveModel(model, flags.out, { dtype: flags.dtype, ...(tokenizer && { tokenizer }), signal });
    return { json: { out: flags.out, sites: sites.length }, text: `${sites.length} sites merged, saved in ${flags.out}\n` };
  } finally {
    model.dispose();
  }
}
