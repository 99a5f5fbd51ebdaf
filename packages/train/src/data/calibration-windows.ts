import { checkOptions, ConfigError } from '@niwaki/tensor';
import { disposeBatch } from '@niwaki/engine';
import type { Tokenizer } from '@niwaki/hub';
import { tokenBatch, type Model, type TokenBatch } from '@niwaki/nn';
import { parseDocuments } from './document.ts';
import { tokenizeDocuments } from './tokenize.ts';

export interface CalibrationWindowsOptions {
  /** Of the file: `.jsonl` is read as documents, anything else as plain text. */
  readonly name: string;
  /** Most windows that are taken; default 32. */
  readonly windows?: number;
  /** Tokens of a window; default 256, or the model's context where that is less. */
  readonly context?: number;
}

/**
 * Text as the batches that calibrated methods look at: its documents one after another, cut into windows, of which
 * `windows` are taken at even distances from beginning to end. A batch is one window, [1, context]. What does not fill a
 * window is left out, except where the text is shorter than one.
 * Device memory: 12 bytes a token.
 * @param tokenizer as `load` gives it
 * @returns batches, the caller's to dispose
 * @throws ConfigError for options out of range, or without a tokenizer; DataError where the text holds no document, or ids
 * that the model does not know
 * @example const batches = calibrationWindows(text, tokenizer, model.info, { name: 'speech.txt' });
 */
export function calibrationWindows(
  text: string,
  tokenizer: Tokenizer | undefined,
  { vocabularySize, contextLength }: Pick<Model['info'], 'vocabularySize' | 'contextLength'>,
  options: CalibrationWindowsOptions,
): TokenBatch[] {
  checkOptions('calibrationWindows', options, ['name', 'windows', 'context']);
  const { name, windows = 32, context = Math.min(256, contextLength) } = options;
  if (!(Number.isInteger(windows) && windows >= 1))
    throw new ConfigError(`calibrationWindows: windows must be a whole number from 1, got ${windows}`, { windows });
  if (!(Number.isInteger(context) && context >= 1 && context <= contextLength)) {
    throw new ConfigError(`calibrationWindows: context must be a whole number from 1 to the model's ${contextLength}, got ${context}`, {
      context,
      contextLength,
    });
  }
  const ids = joined(tokenizeDocuments(parseDocuments(text, { name }), tokenizer).map((sample) => sample.ids));
  const whole = Math.max(1, Math.floor(ids.length / context));
  const taken = Math.min(windows, whole);
  const batches: TokenBatch[] = [];
  try {
    for (let i = 0; i < taken; i++) {
      const from = Math.floor((i * whole) / taken) * context;
      batches.push(tokenBatch([[...ids.subarray(from, from + context)]], { vocabularySize }));
    }
  } catch (error) {
    batches.forEach(disposeBatch);
    throw error;
  }
  return batches;
}

function joined(lists: readonly Int32Array[]): Int32Array {
  const all = new Int32Array(lists.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const list of lists) {
    all.set(list, at);
    at += list.length;
  }
  return all;
}
