import { evaluateText, recipeKit, type Loaded } from 'niwaki';
import type { Command } from 'commander';
import { UsageError } from './failure.ts';
import { count } from './flags.ts';
import { createProgress } from './progress.ts';
import type { Terminal } from './terminal.ts';

/** Flags of commands that say what a change costs. */
export interface ScoringFlags {
  readonly eval?: string;
  readonly maxTokens?: number;
}

export const withScoring = (command: Command): Command =>
  command
    .option('--eval <file>', 'a text whose perplexity is told before and after')
    .option('--max-tokens <n>', 'tokens of that text that are used', count);

/** Perplexity of a text, before a change and after it. */
export interface Perplexity {
  readonly before: number;
  readonly after: number;
}

/** Reads the text at once and scores it when asked; without --eval there is nothing to score. */
export async function scorerOf(
  { eval: file, maxTokens }: ScoringFlags,
  terminal: Terminal,
): Promise<(loaded: Loaded, when: string) => Promise<number | undefined>> {
  if (file === undefined) {
    if (maxTokens !== undefined) throw new UsageError('--max-tokens is of the text of --eval, which is not given', { maxTokens });
    return async () => undefined;
  }
  const text = await recipeKit.readText(file);
  return async ({ model, tokenizer }, when) => {
    const progress = createProgress(terminal, `scoring ${when}`);
    try {
      const { perplexity } = await evaluateText(model, tokenizer, text, {
        ...(maxTokens === undefined ? {} : { maxTokens }),
        signal: terminal.signal,
        onProgress: ({ done, total, nll }) => progress.update(done, total, `nll ${nll.toFixed(4)}`),
      });
      return perplexity;
    } finally {
      progress.stop();
    }
  };
}

export const inWords = ({ before, after }: Perplexity): string => `perplexity ${before.toFixed(3)} → ${after.toFixed(3)}\n`;
