import { checkCall, checkOptions, ConfigError, DataError, type Noun } from '@niwaki/tensor';
import type { Tokenizer } from '@niwaki/hub';
import { aModel, type Model } from '@niwaki/nn';
import { causalLM, disposeBatch, languageBatch, nextTask } from '@niwaki/engine';
import { needTokenizer } from '../data/need-tokenizer.ts';
import { evaluateBatch, evaluateBatchNames, type EvaluateBatchOptions } from './evaluate-batch.ts';

export interface EvaluateTextOptions extends EvaluateBatchOptions {
  /** Tokens of a window; default 256, or the model's context where that is less. */
  readonly context?: number;
  /** Tokens of the text that are used; default all. */
  readonly maxTokens?: number;
  /** Windows of one forward; default 1. */
  readonly batchSize?: number;
  readonly onProgress?: (progress: { done: number; total: number; nll: number }) => void;
}

const aText: Noun = { is: 'text', test: (given) => typeof given === 'string' };

export interface TextScore {
  /** Predicted tokens. */
  readonly tokens: number;
  /** Mean negative log-likelihood of a predicted token, nats. */
  readonly nll: number;
  /** exp(nll). */
  readonly perplexity: number;
  /**
   * Summed negative log-likelihood in bits, by the UTF-8 bytes of the text that the predicted tokens complete: a character
   * of several tokens counts where its last token is. Special tokens have no bytes. Comparable between tokenizers.
   */
  readonly bitsPerByte: number;
}

/**
 * How well a model predicts a text, in windows of `context` tokens that do not overlap: every token but a window's first
 * is predicted from those before it in the window.
 * @param given as `load` gives it
 * @throws ConfigError where there is none; DataError where the text has less than two tokens
 */
export async function evaluateText(
  model: Model,
  given: Tokenizer | undefined,
  text: string,
  options: EvaluateTextOptions = {},
): Promise<TextScore> {
  checkCall('evaluateText(model, tokenizer, text)', { model: [model, aModel], text: [text, aText] });
  checkOptions('evaluateText', options, ['context', 'maxTokens', 'batchSize', 'onProgress', ...evaluateBatchNames]);
  const tokenizer = needTokenizer(given, 'evaluateText');
  const { vocabularySize, contextLength } = model.info;
  const { context = Math.min(256, contextLength), maxTokens = Infinity, batchSize = 1, onProgress, ...rest } = options;
  check('context', context, 2, contextLength);
  check('maxTokens', maxTokens, 2, Infinity);
  check('batchSize', batchSize, 1, Infinity);
  const all = tokenizer.encode(text);
  const ids = all.slice(0, maxTokens);
  if (ids.length < 2) throw new DataError(`the text has ${ids.length} tokens; to predict one takes two`, { tokens: ids.length });
  const windows: number[][] = [];
  for (let at = 0; at + 1 < ids.length; at += context) windows.push(ids.slice(at, at + context));

  const objective = causalLM();
  const total = windows.reduce((sum, window) => sum + window.length - 1, 0);
  let nll = 0;
  let done = 0;
  for (let at = 0; at < windows.length; at += batchSize) {
    const batch = languageBatch(
      windows.slice(at, at + batchSize).map((window) => ({ ids: window })),
      { vocabularySize },
    );
    try {
      for (const loss of await evaluateBatch(model, batch, objective, rest)) {
        nll += loss;
        done += 1;
      }
    } finally {
      disposeBatch(batch);
    }
    onProgress?.({ done, total, nll: nll / done });
    // An abort must be able to arrive on devices that compute on this thread.
    await nextTask();
  }
  const mean = nll / total;
  return { tokens: total, nll: mean, perplexity: Math.exp(mean), bitsPerByte: nll / Math.LN2 / predictedBytes(ids, tokenizer, context) };
}

function predictedBytes(ids: readonly number[], tokenizer: Tokenizer, context: number): number {
  const decoder = tokenizer.streamDecoder({ skipSpecialTokens: true });
  const encoder = new TextEncoder();
  return ids.reduce((sum, id, i) => {
    const { length } = encoder.encode(decoder.push(id));
    return i % context === 0 ? sum : sum + length;
  }, 0);
}

function check(name: string, value: number, least: number, most: number): void {
  if (value === Infinity && most === Infinity) return;
  if (Number.isInteger(value) && value >= least && value <= most) return;
  const range = most === Infinity ? `at least ${least}` : `from ${least} to ${most}`;
  throw new ConfigError(`evaluateText: ${name} must be a whole number ${range}, got ${value}`, { [name]: value });
}
