import { expect, it } from 'vitest';
import { NumericError } from '@niwaki/tensor';
import { candidatesOf, checkLogits, likeliest, logProbabilityOf, penalize, pick } from '@niwaki/nn';

// Probabilities 0.1, 0.4, 0.2, 0.3 at temperature 1.
const logits = Float32Array.from([0.1, 0.4, 0.2, 0.3], Math.log);
const rounded = (values: readonly number[]): number[] => values.map((value) => Math.round(value * 1e5) / 1e5);

it('keeps every token where no filter is set', () => {
  const { ids, probabilities } = candidatesOf(logits, {});
  expect(ids).toEqual([0, 1, 2, 3]);
  expect(rounded(probabilities)).toEqual([0.1, 0.4, 0.2, 0.3]);
});

it('sharpens by the temperature: at 1/2 probabilities are squared', () => {
  expect(rounded(candidatesOf(logits, { temperature: 0.5 }).probabilities)).toEqual(rounded([0.01, 0.16, 0.04, 0.09].map((p) => p / 0.3)));
});

it('keeps the k likeliest and whatever ties with the last of them', () => {
  const two = candidatesOf(logits, { topK: 2 });
  expect([two.ids, rounded(two.probabilities)]).toEqual([[1, 3], rounded([4 / 7, 3 / 7])]);
  expect(candidatesOf(Float32Array.of(1, 2, 1, 0), { topK: 2 }).ids).toEqual([0, 1, 2]);
  expect(candidatesOf(logits, { topK: 9 }).ids).toHaveLength(4);
});

it('keeps the likeliest tokens until they hold the sum asked for, at least one', () => {
  const nucleus = (topP: number): readonly number[] => candidatesOf(logits, { topP }).ids;
  expect(nucleus(0.65)).toEqual([1, 3]);
  expect(nucleus(0.75)).toEqual([1, 3, 2]);
  expect(nucleus(0.95)).toEqual([1, 3, 2, 0]);
  expect(nucleus(0.01)).toEqual([1]);
  expect(rounded(candidatesOf(logits, { topP: 0.65 }).probabilities)).toEqual(rounded([4 / 7, 3 / 7]));
});

it('filters by k before it filters by sum', () => {
  // Of {1, 3} alone the first holds 4/7 = 0.571.
  expect(candidatesOf(logits, { topK: 2, topP: 0.55 }).ids).toEqual([1]);
  expect(candidatesOf(logits, { topK: 2, topP: 0.6 }).ids).toEqual([1, 3]);
});

it('divides positive and multiplies negative logits of seen tokens, each once', () => {
  expect([...penalize(Float32Array.of(2, -2, 4, -4), [0, 1, 0], 2)]).toEqual([1, -4, 4, -4]);
});

it('picks by a point on the line of probabilities', () => {
  const candidates = candidatesOf(logits, {});
  expect([0, 0.09, 0.11, 0.49, 0.51, 0.69, 0.71, 0.999].map((point) => pick(candidates, point))).toEqual([0, 0, 1, 1, 2, 2, 3, 3]);
});

it('takes the smallest id of the likeliest, and log-probabilities of the untouched logits', () => {
  expect(likeliest(Float32Array.of(1, 3, 3))).toBe(1);
  expect(logProbabilityOf(logits, 1)).toBeCloseTo(Math.log(0.4), 6);
});

it('refuses logits that say nothing, and takes those that rule tokens out', () => {
  for (const bad of [NaN, Infinity]) expect(() => checkLogits(Float32Array.of(1, bad, 2))).toThrow(NumericError);
  expect(() => checkLogits(Float32Array.of(-Infinity, -Infinity))).toThrow(NumericError);
  checkLogits(Float32Array.of(-Infinity, 0, -3));
});
