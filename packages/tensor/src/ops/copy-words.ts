import { runOp, type Op } from '../op.ts';
import { concat, slice, type Tensor, type Tensor1D } from '../tfjs.ts';

/**
 * Inputs words0, words1, … int32, `parts` of them. Output [all after one another]. tfjs reads int32 as f32 on WebGPU: what is
 * no number there, but packed bytes, would lose the lowest of them.
 */
export const joinWordsOp: Op<{ [name: string]: Tensor }, { parts: number }> = {
  kernelName: 'NiwakiJoinWords',
  reference: (inputs, { parts }) => [concat(Array.from({ length: parts }, (_, i) => inputs[`words${i}`] as Tensor1D))],
};

/** Input words int32. Output [`count` of them from `from` on]. */
export const cutWordsOp: Op<{ words: Tensor }, { from: number; count: number }> = {
  kernelName: 'NiwakiCutWords',
  reference: ({ words }, { from, count }) => [slice(words as Tensor1D, [from], [count])],
};

/** Packed words after one another, bit for bit. @param words int32 [n] each */
export const joinWords = (words: readonly Tensor[]): Tensor1D =>
  runOp(joinWordsOp, Object.fromEntries(words.map((each, i) => [`words${i}`, each])), { parts: words.length })[0] as Tensor1D;

/** A run of packed words, bit for bit. @param words int32 [n] */
export const cutWords = (words: Tensor, from: number, count: number): Tensor1D =>
  runOp(cutWordsOp, { words }, { from, count })[0] as Tensor1D;
