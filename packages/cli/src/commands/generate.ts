import { activationModes } from '@niwaki/tensor';
import { ConfigError, generate, type Activations } from 'niwaki';
import { Option, type Command } from 'commander';
import { natural, number, withModel, type ModelFlags } from '../flags.ts';
import { UsageError } from '../failure.ts';
import { openModel } from '../open-model.ts';
import type { Result } from '../result.ts';
import type { Terminal } from '../terminal.ts';

interface GenerateFlags extends ModelFlags {
  readonly prompt?: string;
  readonly chat?: string;
  readonly maxNewTokens: number;
  readonly temperature: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly seed: number;
  readonly activations: Activations;
}

export const generateFlags = (command: Command): Command =>
  withModel(command)
    .description('continue a prompt, or answer one as the chat template writes it')
    .addOption(new Option('--prompt <text>', 'a text to continue').conflicts('chat'))
    .option('--chat <text>', 'what a user says')
    .option('--max-new-tokens <n>', 'tokens at most', natural, 128)
    .option('--temperature <t>', '0: always the likeliest token', number, 0)
    .option('--top-k <n>', 'among the k likeliest', natural)
    .option('--top-p <p>', 'among the likeliest with this sum of probability', number)
    .option('--seed <n>', 'of the sampling', natural, 0)
    .addOption(
      new Option('--activations <mode>', 'integers are faster on wasm, and not the same numbers').choices(activationModes).default('exact'),
    );

/** Generates; without --json the text appears as it comes. */
export async function runGenerate(flags: GenerateFlags, terminal: Terminal): Promise<Result> {
  if (flags.prompt === undefined && flags.chat === undefined) throw new UsageError('give --prompt or --chat');
  const { model, tokenizer } = await openModel(flags, terminal);
  try {
    if (tokenizer === undefined)
      throw new ConfigError(`'${model.info.source}' came without a tokenizer, so no text can be read`, { model: model.info.source });
    const promptIds =
      flags.chat === undefined
        ? tokenizer.encode(flags.prompt!)
        : tokenizer.encodeChat([{ role: 'user', content: flags.chat }], { addGenerationPrompt: true });
    const stopIds = endsOf(tokenizer.eosIds, model.info.config['eos_token_id']);
    const ids: number[] = [];
    const tokens = generate(model, promptIds, {
      maxNewTokens: flags.maxNewTokens,
      temperature: flags.temperature,
      ...(flags.topK && { topK: flags.topK }),
      ...(flags.topP !== undefined && { topP: flags.topP }),
      seed: flags.seed,
      activations: flags.activations,
      stopIds,
      signal: terminal.signal,
    });
    const stream = tokenizer.streamDecoder({ skipSpecialTokens: true });
    for await (const { id } of tokens) {
      ids.push(id);
      if (flags.json) continue;
      terminal.out(stream.push(id));
    }
    if (!flags.json) terminal.out(`${stream.end()}\n`);
    return { json: { promptIds: [...promptIds], ids, text: tokenizer.decode(ids, { skipSpecialTokens: true }) }, text: '' };
  } finally {
    model.dispose();
  }
}

/** Whatever ends a turn or a text: by the tokenizer, and by the config. */
function endsOf(eosIds: readonly number[], config: unknown): number[] {
  const own = [config].flat().filter((id): id is number => typeof id === 'number');
  return [...new Set([...eosIds, ...own])];
}
