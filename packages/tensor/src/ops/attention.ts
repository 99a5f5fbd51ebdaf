import {
  add,
  cast,
  div,
  exp,
  expandDims,
  greaterEqual,
  less,
  log,
  logicalAnd,
  logicalOr,
  matMul,
  max,
  maximum,
  mul,
  range,
  reshape,
  sub,
  sum,
  tile,
  transpose,
  where,
  zerosLike,
  type Tensor,
  type Tensor4D,
  type Tensor2D,
} from '../tfjs.ts';
import { runOp, withGradient, type Op } from '../op.ts';

/**
 * Inputs q [batch, T, heads, d], k and v [batch, S, kvHeads, d] f32; from, to [batch, T] int32: query i sees the keys
 * from[i] <= j < to[i]. One pair of bounds says causal, sliding window, padding, packed documents and bidirectional.
 * Outputs [y [batch, T, heads, d], logSumExp [batch, heads, T]]. A query that sees nothing gives 0 and a log-sum-exp of 0.
 * Query head h reads kv head floor(h / (heads / kvHeads)).
 */
export const attentionOp: Op<AttentionInputs, AttentionAttributes> = {
  kernelName: 'NiwakiAttention',
  reference: (inputs, attributes) => forwardOf(inputs, attributes),
};

export interface AttentionAttributes {
  readonly scale: number;
  /**
   * Every query that sees anything also sees the keys before this one that are before its `to`: rows put in front of padded
   * or packed sequences, whose own keys start elsewhere. Default 0.
   */
  readonly always?: number;
}

/** Inputs of the forward op and its outputs, and dy. Outputs [dq, dk, dv]. Probabilities are computed again. */
export const attentionGradOp: Op<AttentionGradInputs, AttentionAttributes> = {
  kernelName: 'NiwakiAttentionGrad',
  reference: (inputs, attributes) => gradientOf(inputs, attributes),
};

function forwardOf({ q, k, v, from, to }: AttentionInputs, attributes: AttentionAttributes): Tensor[] {
  const { probabilities, logSumExp } = scoresOf({ q, k, from, to }, attributes);
  return [ungroup(matMul(probabilities, byHead(v)), q.shape), logSumExp];
}

function gradientOf({ dy, q, k, v, y, from, to }: AttentionGradInputs, attributes: AttentionAttributes): Tensor[] {
  const { probabilities } = scoresOf({ q, k, from, to }, attributes);
  const gradient = group(dy, k.shape[2]!);
  const dv = matMul(probabilities, gradient, true, false);
  const dp = matMul(gradient, byHead(v), false, true);
  const rowDot = sum(mul(gradient, group(y, k.shape[2]!)), -1, true);
  const ds = mul(mul(probabilities, sub(dp, rowDot)), attributes.scale);
  const dq = ungroup(matMul(ds, byHead(k)), q.shape);
  const dk = matMul(ds, group(q, k.shape[2]!), true, false);
  return [dq, transpose(dk, [0, 2, 1, 3]), transpose(dv, [0, 2, 1, 3])];
}

export interface AttentionInputs {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  from: Tensor;
  to: Tensor;
  [name: string]: Tensor;
}

export interface AttentionGradInputs extends AttentionInputs {
  dy: Tensor;
  y: Tensor;
  logSumExp: Tensor;
}

// The query heads of one kv head are folded into rows, so that nothing repeats K and V: [batch, kvHeads, groups·T, d].
function group(q: Tensor, kvHeads: number): Tensor {
  const [batch, time, heads, d] = q.shape as [number, number, number, number];
  return reshape(transpose(q, [0, 2, 1, 3]), [batch, kvHeads, (heads / kvHeads) * time, d]);
}

function ungroup(grouped: Tensor, shape: readonly number[]): Tensor {
  const [batch, time, heads, d] = shape as [number, number, number, number];
  return transpose(reshape(grouped, [batch, heads, time, d]), [0, 2, 1, 3]);
}

const byHead = (k: Tensor): Tensor => transpose(k, [0, 2, 1, 3]);

function scoresOf(
  { q, k, from, to }: Pick<AttentionInputs, 'from' | 'to'> & { q: Tensor; k: Tensor },
  { scale, always = 0 }: AttentionAttributes,
): { probabilities: Tensor; logSumExp: Tensor } {
  const [batch, time, heads] = q.shape as [number, number, number];
  const [, keys, kvHeads] = k.shape as [number, number, number];
  const scores = mul(matMul(group(q, kvHeads), byHead(k), false, true), scale);
  const j = reshape(range(0, keys, 1, 'int32'), [1, 1, keys]);
  const own = greaterEqual(j, expandDims(from, 2));
  // A query that sees nothing of its own (padding) sees nothing at all.
  const after = always === 0 ? own : logicalOr(own, logicalAnd(less(j, always), expandDims(less(from, to), 2)));
  const seen = logicalAnd(after, less(j, expandDims(to, 2)));
  const allowed = cast(tile(expandDims(seen, 1), [1, kvHeads, heads / kvHeads, 1]), 'bool');
  // A finite constant, not -Infinity: a row that sees nothing must stay finite, and WGSL may assume that infinities do not exist.
  const masked = where(allowed, scores, mul(add(zerosLike(scores), 1), -1e30));
  const peak = maximum(max(masked, -1, true), -1e29);
  const weights = where(allowed, exp(sub(masked, peak)), zerosLike(scores));
  const total = sum(weights, -1, true);
  // The peak itself weighs 1, so a total below 1/2 means that nothing is seen. (A tiny bound would be flushed to zero on a GPU.)
  const safe = maximum(total, 0.5);
  const any = greaterEqual(total, 0.5);
  const logSumExp = where(any, add(peak, log(safe)), zerosLike(total));
  return { probabilities: div(weights, safe), logSumExp: reshape(logSumExp, [batch, heads, time]) };
}

/**
 * Scaled dot-product attention with grouped query heads. Saves q, k, v, y, the bounds and one log-sum-exp a row, never the scores.
 * @param bounds int32 [batch, T] each: query i sees the keys from[i] <= j < to[i]
 * @param options `always`: keys at the front that queries see before their `from` too; see `AttentionAttributes`
 */
export function attention(
  q: Tensor4D,
  k: Tensor4D,
  v: Tensor4D,
  bounds: { from: Tensor2D; to: Tensor2D },
  { scale, always = 0 }: AttentionAttributes,
): Tensor4D {
  const { from, to } = bounds;
  const attributes = { scale, always };
  return withGradient(
    [q, k, v],
    (save) => {
      const [y, logSumExp] = runOp(attentionOp, { q, k, v, from, to }, attributes);
      save([q, k, v, y!, logSumExp!, from, to]);
      return y!;
    },
    (dy, saved) => {
      const [sq, sk, sv, y, logSumExp, sFrom, sTo] = saved as [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor];
      return runOp(attentionGradOp, { dy, q: sq, k: sk, v: sv, y, logSumExp, from: sFrom, to: sTo }, attributes);
    },
  ) as Tensor4D;
}
