import { mergeAndUnload, saveModel } from 'niwaki';
import { Option, type Command } from 'commander';
import { withCommon, type CommonFlags } from '../flags.ts';
import { openModel } from '../open-model.ts';
import { checkOut } from '../out-folder.ts';
import type { Result } from '../result.ts';
import type { Terminal } from '../terminal.ts';

interface MergeFlags extends CommonFlags {
  readonly model?: string;
  readonly adapter: string;
  readonly out: string;
  readonly dtype: 'f32' | 'f16' | 'bf16';
}

export const mergeFlags = (command: Command): Command =>
  withCommon(command)
    .description('write an adapter into its model, as a Hugging Face folder')
    .option('--model <m>', 'a folder, a .gguf, a .safetensors, a URL, or a known name (niwaki-tiny); a folder of finetune names its own')
    .requiredOption('--adapter <dir>', 'a PEFT adapter; of a folder of finetune, on the model pruned and quantized as it was')
    .requiredOption('--out <dir>', 'folder of the result')
    .addOption(new Option('--dtype <type>', 'of the numbers in the file').choices(['f32', 'f16', 'bf16']).default('f32'));

export async function runMerge(flags: MergeFlags, terminal: Terminal): Promise<Result> {
  const { signal } = terminal;
  await checkOut(flags.out);
  const { model, tokenizer } = await openModel(flags, terminal);
  try {
    const { sites, warnings } = await mergeAndUnload(model, model.active[0]!, { into: 'dense', dtype: flags.dtype });
    for (const { message } of warnings) terminal.err(`warning: ${message}\n`);
    await saveModel(model, flags.out, { dtype: flags.dtype, ...(tokenizer && { tokenizer }), signal });
    return { json: { out: flags.out, sites: sites.length }, text: `${sites.length} sites merged, saved in ${flags.out}\n` };
  } finally {
    model.dispose();
  }
}
