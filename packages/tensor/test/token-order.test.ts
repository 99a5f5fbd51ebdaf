import { describe, expect, it } from 'vitest';
import {
  add,
  combineTokens,
  ConfigError,
  dispatchTokens,
  dispose,
  div,
  expandDims,
  gather,
  gradientsOf,
  groupedMatMul,
  matMul,
  memory,
  mul,
  oneHot,
  reshape,
  ShapeError,
  slice,
  softmax,
  sum,
  tensor2d,
  tensor3d,
  tidy,
  tokenOrder,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
  type Tensor3D,
  type TokenOrder,
} from '@niwaki/tensor';

const wave = (length: number, seed: number): Float32Array => Float32Array.from({ length }, (_, i) => Math.sin(seed + i * 1.7));
const matrix = (rows: number, columns: number, seed: number): Tensor2D => tensor2d(wave(rows * columns, seed), [rows, columns]);
const host = (value: Tensor): number[] => [...value.dataSync()];
const picksOf = (rows: readonly (readonly number[])[]): Tensor2D => tensor2d(rows.flat(), [rows.length, rows[0]!.length], 'int32');
const disposeOrder = ({ tokens, pairs, slots, runs }: TokenOrder): void => dispose([tokens, pairs, slots, runs]);

describe('the order of tokens by expert', () => {
  it('keeps the order of equal experts, and puts pairs of no expert last', () => {
    const before = memory().numTensors;
    const experts = picksOf([
      [2, 0],
      [0, -1],
      [2, 1],
      [9, 0],
    ]);
    const order = tokenOrder(experts, 4);
    expect(host(order.pairs)).toEqual([1, 2, 7, 5, 0, 4, 3, 6]);
    expect(host(order.tokens)).toEqual([0, 1, 3, 2, 0, 2, 1, 3]);
    expect(order.slots.shape).toEqual([4, 2]);
    expect(host(order.slots)).toEqual([4, 0, 1, 6, 5, 3, 7, 2]);
    expect(host(order.runs)).toEqual([0, 3, 4, 6, 6]);
    disposeOrder(order);
    experts.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('refuses what is no list of experts', () => {
    tidy(() => {
      expect(() => tokenOrder(matrix(3, 2, 1), 4)).toThrow(ShapeError);
      expect(() => tokenOrder(picksOf([[1, 0]]), 0)).toThrow(ConfigError);
      const order = tokenOrder(picksOf([[1, 0]]), 2);
      expect(() => dispatchTokens(matrix(3, 2, 1), order)).toThrow(/takes 1 rows/);
      expect(() => combineTokens(matrix(3, 2, 1), matrix(1, 2, 1), order)).toThrow(/takes 2 rows/);
      expect(() => combineTokens(matrix(2, 2, 1), matrix(2, 1, 1), order)).toThrow(/one a pick/);
    });
  });
});

describe('tokens through experts', () => {
  const [count, width, tokens] = [5, 6, 13];

  /** Gate, picks and weights of `picks` experts a token; expert 3 is never chosen. */
  function gate(x: Tensor2D, router: Tensor2D, picks: number, renormalize: boolean): { experts: Tensor2D; weights: Tensor2D } {
    const probabilities = softmax(matMul(x, router, false, true)) as Tensor2D;
    const values = host(probabilities);
    const chosen = Array.from({ length: tokens }, (_, t) =>
      [0, 1, 2, 4].sort((a, b) => values[t * count + b]! - values[t * count + a]!).slice(0, picks),
    );
    const experts = picksOf(chosen);
    const flat = tensor2d(
      chosen.flatMap((row, t) => row.map((e) => t * count + e)),
      [tokens, picks],
      'int32',
    );
    const everyone: Tensor1D = reshape(probabilities, [tokens * count]);
    const taken = gather<Tensor>(everyone, flat);
    return { experts, weights: (renormalize ? div(taken, sum(taken, 1, true)) : taken) as Tensor2D };
  }

  it('come back as they were where every expert is the identity', () => {
    const before = memory().numTensors;
    tidy(() => {
      const [x, router] = [matrix(tokens, width, 1), matrix(count, width, 2)];
      const identity = (picks: number, renormalize: boolean): { y: number[]; weights: number[] } => {
        const { experts, weights } = gate(x, router, picks, renormalize);
        const order = tokenOrder(experts, count);
        return { y: host(combineTokens(dispatchTokens(x, order), weights, order)), weights: host(weights) };
      };
      const values = host(x);
      identity(2, true).y.forEach((value, i) => expect(value).toBeCloseTo(values[i]!, 6));
      // Switch: times the probability of the one expert.
      const { y, weights } = identity(1, false);
      y.forEach((value, i) => expect(value).toBeCloseTo(weights[Math.floor(i / width)]! * values[i]!, 6));
    });
    expect(memory().numTensors).toBe(before);
  });

  it.each([1, 2, 3])('with %i picks are the sum over all experts under their weights, and so are all gradients', (picks) => {
    const before = memory().numTensors;
    const [x, router, dy] = [matrix(tokens, width, 1), matrix(count, width, 2), matrix(tokens, 4, 3)];
    const w = tensor3d(wave(count * 4 * width, 4), [count, 4, width]);
    const layer = (): Tensor =>
      tidy(() => {
        const { experts, weights } = gate(x, router, picks, true);
        const order = tokenOrder(experts, count);
        return combineTokens(groupedMatMul(dispatchTokens(x, order), w, order.runs), weights, order);
      });
    /** Every expert over every token: weights [tokens, count], 0 where it is not picked. */
    const everywhere = (): Tensor =>
      tidy(() => {
        const { experts, weights } = gate(x, router, picks, true);
        const whole = sum(mul(oneHot(experts, count), expandDims(weights, 2)), 1) as Tensor2D;
        const terms = Array.from({ length: count }, (_, e) => {
          const own = reshape(slice(w, [e, 0, 0], [1, 4, width]), [4, width]) as Tensor2D;
          return mul(matMul(x, own, false, true), slice(whole, [0, e], [tokens, 1]));
        });
        return terms.reduce((total, term) => add(total, term));
      });
    const all = [layer, everywhere].map((run) => {
      const { value, gradients } = gradientsOf(run, [x, router, w], (y) => [{ of: y, value: dy }]);
      const values = [value, ...(gradients as Tensor[])].map(host);
      dispose([value, ...(gradients as Tensor[])]);
      return values;
    });
    all[0]!.forEach((values, i) => values.forEach((value, e) => expect(value).toBeCloseTo(all[1]![i]![e]!, 4)));
    // With one pick renormalized weights are 1, whatever the router says.
    expect(Math.max(...all[0]![2]!.map(Math.abs)) > 1e-3).toBe(picks > 1);
    const unused = all[0]![3]!.slice(3 * 4 * width, 4 * 4 * width);
    expect(unused).toEqual(Array(4 * width).fill(0));
    dispose([x, router, dy, w]);
    expect(memory().numTensors).toBe(before);
  });

  it('of pairs that go to no expert get nothing, and give no gradient', () => {
    const before = memory().numTensors;
    const x = matrix(3, width, 1);
    const w: Tensor3D = tensor3d(wave(2 * 4 * width, 4), [2, 4, width]);
    const [weights, dy] = [matrix(3, 2, 5), matrix(3, 4, 3)];
    const experts = picksOf([
      [0, -1],
      [-1, -1],
      [1, 0],
    ]);
    const order = tokenOrder(experts, 2);
    const { value, gradients } = gradientsOf(
      () => tidy(() => combineTokens(groupedMatMul(dispatchTokens(x, order), w, order.runs), weights, order)),
      [x, weights],
      (y) => [{ of: y, value: dy }],
    );
    expect(host(value).slice(4, 8)).toEqual([0, 0, 0, 0]);
    expect(host(gradients[0]!).slice(width, 2 * width)).toEqual(Array(width).fill(0));
    expect(host(gradients[1]!).map((v) => v !== 0)).toEqual([true, false, false, false, true, true]);
    dispose([x, w, weights, dy, experts, value, ...(gradients as Tensor[])]);
    disposeOrder(order);
    expect(memory().numTensors).toBe(before);
  });
});
