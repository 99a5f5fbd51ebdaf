import { ConfigError, evaluateText, recipeKit } from 'niwaki';
import type { Command } from 'commander';
import { count, withModel, type ModelFlags } from '../flags.ts';
import { openModel } from '../open-model.ts';
import { createProgress } from '../progress.ts';
import type { Terminal } from '../terminal.ts';
import type { Result } from '../result.ts';

interface EvalFlags extends ModelFlags {
  readonly text: string;
  readonly context?: number;
  readonly maxTokens?: number;
}

export const evalFlags = (command: Command): Command =>
  withModel(command)
    .description('how well a model predicts a text: windows that do not overlap, every token but the first of each')
    .requiredOption('--text <file>', 'a text file')
    .option('--context <n>', "tokens of a window (default: 256, or the model's context where that is less)", count)
    .option('--max-tokens <n>', 'tokens of the text that are used', count);

/** Scores the text. `bitsPerByte` counts the UTF-8 bytes of the predicted tokens' text. */
export async function runEval(flags: EvalFlags, terminal: Terminal): Promise<Result> {
  const text = await recipeKit.readText(flags.text);
  const { model, tokenizer } = await openModel(flags, terminal);
  const progress = createProgress(terminal, 'scoring');
  try {
    if (tokenizer === undefined)
      throw new ConfigError(`'${model.info.source}' came without a tokenizer, so no text can be scored`, { model: model.info.source });
    const score = await evaluateText(model, tokenizer, text, {
      ...(flags.context === undefined ? {} : { context: flags.context }),
      ...(flags.maxTokens === undefined ? {} : { maxTokens: flags.maxTokens }),
      signal: terminal.signal,
      onProgress: ({ done, total, nll }) => progress.update(done, total, `nll ${nll.toFixed(4)}`),
    });
    const { tokens, nll, perplexity, bitsPerByte } = score;
    const words = `${tokens} tokens predicted\nnll          ${nll.toFixed(4)} nats a token\nperplexity   ${perplexity.toFixed(3)}\nbits/byte    ${bitsPerByte.toFixed(4)}\n`;
    return { json: { tokens, nll, perplexity, bitsPerByte }, text: words };
  } finally {
    progress.stop();
    model.dispose();
  }
}
