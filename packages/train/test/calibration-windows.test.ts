import { ConfigError, DataError, memory } from '@niwaki/tensor';
import { disposeBatch } from '@niwaki/engine';
import { byteTokenizer, byteVocabularySize as vocabularySize } from '@niwaki/testing';
import { expect, it } from 'vitest';
import { calibrationWindows, type CalibrationWindowsOptions } from '../src/index.ts';

const info = { vocabularySize, contextLength: 64 };
const end = byteTokenizer().eosIds[0]!;

async function windowsOf(text: string, options: Partial<CalibrationWindowsOptions>): Promise<number[][]> {
  const before = memory().numTensors;
  const batches = calibrationWindows(text, byteTokenizer(), info, { name: 'text.txt', ...options });
  const rows = await Promise.all(batches.map(async ({ tokenIds }) => [...(await tokenIds.data())]));
  batches.forEach(disposeBatch);
  expect(memory().numTensors).toBe(before);
  return rows;
}

const ids = (text: string): number[] => [...new TextEncoder().encode(text)];

it('takes windows at even distances, from the first on', async () => {
  // Ten letters and the end of text: five windows of two, of which the first, second and fourth are 0, 5/3 and 10/3 on.
  expect(await windowsOf('abcdefghij', { windows: 3, context: 2 })).toEqual([ids('ab'), ids('cd'), ids('gh')]);
});

it('takes what there is where the text has fewer, and the whole of a text shorter than a window', async () => {
  expect(await windowsOf('abcde', { context: 4 })).toEqual([ids('abcd')]);
  expect(await windowsOf('abc', { context: 8 })).toEqual([[...ids('abc'), end]]);
});

it('has 32 windows of 256 tokens by default, or of what the model takes', async () => {
  const windows = await windowsOf('x'.repeat(64 * 40), {});
  expect(windows).toHaveLength(32);
  expect(windows.every(({ length }) => length === 64)).toBe(true);
});

it('reads JSONL by the name of the file, one document after another', async () => {
  const lines = '{"text":"ab"}\n{"prompt":"c","completion":"d"}\n';
  expect(await windowsOf(lines, { name: 'text.jsonl', context: 6 })).toEqual([[...ids('ab'), end, ...ids('cd'), end]]);
});

it.each<[Partial<CalibrationWindowsOptions>, RegExp]>([
  [{ windows: 0 }, /windows must be a whole number from 1, got 0/],
  [{ context: 65 }, /context must be a whole number from 1 to the model's 64, got 65/],
])('refuses %j', (options, message) => {
  const run = (): unknown => calibrationWindows('abc', byteTokenizer(), info, { name: 'text.txt', ...options });
  expect(run).toThrow(ConfigError);
  expect(run).toThrow(message);
});

it('refuses an empty text, ids that the model has not, and a model without a tokenizer', () => {
  const before = memory().numTensors;
  expect(() => calibrationWindows(' \n', byteTokenizer(), info, { name: 'empty.txt' })).toThrow(DataError);
  const small = { vocabularySize: 99, contextLength: 2 };
  expect(() => calibrationWindows('abzz', byteTokenizer(), small, { name: 'text.txt' })).toThrow(DataError);
  expect(() => calibrationWindows('abc', undefined, info, { name: 'text.txt' })).toThrow(/calibration.*tokenizer|tokenizeDocuments needs/);
  expect(memory().numTensors).toBe(before);
});
