import { ShapeError } from '../errors.ts';
import { checkCount } from '../out-of-range.ts';
import { runOp, withGradient, type Op } from '../op.ts';
import { div, expandDims, gather, mul, reshape, scalar, sum, tensor1d, tidy, type Tensor, type Tensor1D, type Tensor2D } from '../tfjs.ts';
import type { Runs } from './runs.ts';

/**
 * Input keys int32 [n]. Outputs, all int32, of sorting them with equal ones in the order they had: [order [n], the number
 * of the key in each place; places [n], the place of each key; runs [count + 1], where keys 0 to count - 1 lie]. Keys outside
 * of [0, count) come last.
 */
export const countingSortOp: Op<{ keys: Tensor }, { count: number }> = {
  kernelName: 'NiwakiCountingSort',
  reference: ({ keys }, { count }) => {
    const values = keys.dataSync() as Int32Array;
    const bucket = (key: number): number => (key >= 0 && key < count ? key : count);
    const next = new Int32Array(count + 2);
    for (const key of values) next[bucket(key) + 1]!++;
    for (let key = 0; key <= count; key++) next[key + 1]! += next[key]!;
    const runs = next.slice(0, count + 1);
    const order = new Int32Array(values.length);
    const places = new Int32Array(values.length);
    for (let i = 0; i < values.length; i++) {
      const place = next[bucket(values[i]!)]!++;
      order[place] = i;
      places[i] = place;
    }
    return [tensor1d(order, 'int32'), tensor1d(places, 'int32'), tensor1d(runs, 'int32')];
  },
};

/** The order in which (token, pick) pairs meet the experts, sorted by expert: int32 tensors, `dispose` them all. */
export interface TokenOrder {
  /** Token of each slot [tokens · picks]. */
  readonly tokens: Tensor1D;
  /** Pair of each slot [tokens · picks]: token · picks + pick. */
  readonly pairs: Tensor1D;
  /** Slot of each pair [tokens, picks]. */
  readonly slots: Tensor2D;
  /** Slots of each expert [count + 1]. Pairs of no expert lie behind the last. */
  readonly runs: Runs;
}

/**
 * Sorts (token, pick) pairs by expert, for products that give every expert one run of rows: no capacity, none dropped
 * (MegaBlocks, Gale et al. 2022). Equal experts keep the order of their pairs, so that every device gives the same; nothing
 * is read back. Bytes: 12 a pair.
 * @param experts int32 [tokens, picks]; a pick outside of [0, count), e.g. -1, goes to no expert
 * @param count of experts
 */
export function tokenOrder(experts: Tensor2D, count: number): TokenOrder {
  if (experts.dtype !== 'int32' || experts.rank !== 2) {
    throw new ShapeError(`tokenOrder: experts are int32 [tokens, picks], got ${experts.dtype} [${experts.shape}]`, {
      dtype: experts.dtype,
      given: experts.shape,
    });
  }
  checkCount('tokenOrder', 'count', count);
  const [tokens, picks] = experts.shape;
  return tidy(() => {
    const [pairs, places, runs] = runOp(countingSortOp, { keys: reshape(experts, [tokens * picks]) }, { count }) as Tensor1D[];
    return {
      tokens: div(pairs!, scalar(picks, 'int32')) as Tensor1D,
      pairs: pairs!,
      slots: reshape(places!, [tokens, picks]) as Tensor2D,
      runs: runs!,
    };
  });
}

/**
 * Rows of tokens in the order of their experts: one row a slot. The gradient of a token is the sum over its picks, gathered
 * by slot: one order, no atomics.
 * @param x [tokens, width]
 * @returns [tokens · picks, width]
 */
export function dispatchTokens(x: Tensor2D, { tokens, slots }: TokenOrder): Tensor2D {
  expectRows('dispatchTokens', x, slots.shape[0]);
  return withGradient(
    [x],
    (save) => {
      save([slots]);
      return gather(x, tokens);
    },
    (dy, [places]) => [tidy(() => sum(gather(dy, places as Tensor2D), 1))],
  ) as Tensor2D;
}

/**
 * What experts gave, back at the tokens: Σ over picks of weight · row, summed in the order of the picks. Backward keeps y and
 * the weights: [tokens, picks, width] f32 are alive for a moment each way.
 * @param y [tokens · picks, width], a row a slot
 * @param weights [tokens, picks]
 * @returns [tokens, width]
 */
export function combineTokens(y: Tensor2D, weights: Tensor2D, { tokens, pairs, slots }: TokenOrder): Tensor2D {
  expectRows('combineTokens', y, slots.size);
  if (weights.shape.join() !== slots.shape.join()) {
    throw new ShapeError(`combineTokens: weights are [${slots.shape}], one a pick, got [${weights.shape}]`, {
      expected: slots.shape,
      given: weights.shape,
    });
  }
  return withGradient(
    [y, weights],
    (save) => {
      save([y, weights, tokens, pairs, slots]);
      return sum(mul(gather(y, slots), expandDims(weights, 2)), 1);
    },
    (dy, [rows, shares, token, pair, places]) => [
      tidy(() => mul(gather(dy, token as Tensor1D), expandDims(gather(reshape(shares!, [shares!.size]), pair as Tensor1D), 1))),
      tidy(() => sum(mul(gather(rows!, places as Tensor2D), expandDims(dy, 1)), 2)),
    ],
  ) as Tensor2D;
}

function expectRows(name: string, of: Tensor2D, rows: number): void {
  if (of.shape[0] === rows) return;
  throw new ShapeError(`${name}: takes ${rows} rows, got [${of.shape}]`, { expected: rows, given: of.shape });
}
