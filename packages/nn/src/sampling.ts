import { ConfigError, NumericError } from '@niwaki/tensor';

export interface SamplingOptions {
  /** 0 (default): always the likeliest token. */
  readonly temperature?: number;
  /** Keep the k likeliest tokens, and those that tie with the last of them; default all. */
  readonly topK?: number;
  /** Keep the likeliest tokens until their probabilities reach this sum (nucleus sampling, Holtzman et al. 2020); default 1, all. */
  readonly topP?: number;
  /** Divides positive and multiplies negative logits of tokens already seen (CTRL, Keskar et al. 2019); default 1, off. */
  readonly repetitionPenalty?: number;
}

export interface Candidates {
  readonly ids: readonly number[];
  /** Sum to 1. */
  readonly probabilities: readonly number[];
}

/** Throws ConfigError for an option out of its range. */
export function checkSampling({ temperature = 0, topK, topP = 1, repetitionPenalty = 1 }: SamplingOptions): void {
  const require = (holds: boolean, field: string, range: string, value: unknown): void => {
    if (!holds) throw new ConfigError(`generate: ${field} must be ${range}, got ${String(value)}`, { field, value });
  };
  require(temperature >= 0 && Number.isFinite(temperature), 'temperature', 'a number from 0', temperature);
  require(topK === undefined || (Number.isInteger(topK) && topK >= 1), 'topK', 'a whole number from 1', topK);
  require(topP > 0 && topP <= 1, 'topP', 'in (0, 1]', topP);
  require(repetitionPenalty > 0 && Number.isFinite(repetitionPenalty), 'repetitionPenalty', 'a positive number', repetitionPenalty);
}

/** Logits with the ones of seen tokens moved down: a copy where the penalty is on. */
export function penalize(logits: Float32Array, seen: Iterable<number>, penalty = 1): Float32Array {
  if (penalty === 1) return logits;
  const changed = logits.slice();
  for (const id of new Set(seen)) changed[id] = logits[id]! < 0 ? logits[id]! * penalty : logits[id]! / penalty;
  return changed;
}

/** The likeliest token; the smallest id where several tie. */
export function likeliest(logits: Float32Array): number {
  let best = 0;
  for (let id = 1; id < logits.length; id++) if (logits[id]! > logits[best]!) best = id;
  return best;
}

/**
 * The tokens that may come next and their probabilities, likeliest first where topP asks for an order.
 * Order of the filters: temperature, topK, topP, as in transformers.
 */
export function candidatesOf(logits: Float32Array, { temperature = 1, topK, topP = 1 }: SamplingOptions): Candidates {
  const least = topK === undefined || topK >= logits.length ? -Infinity : logits.slice().sort()[logits.length - topK]!;
  const peak = logits[likeliest(logits)]!;
  const ids: number[] = [];
  for (let id = 0; id < logits.length; id++) if (logits[id]! >= least) ids.push(id);
  const weights = ids.map((id) => Math.exp((logits[id]! - peak) / temperature));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  if (topP === 1) return { ids, probabilities: weights.map((weight) => weight / total) };
  return nucleus(
    ids,
    weights.map((weight) => weight / total),
    topP,
  );
}

function nucleus(ids: readonly number[], probabilities: readonly number[], topP: number): Candidates {
  // Entries below this sum to less than 1 - topP altogether: none of them is in the nucleus, and few remain to be sorted.
  const floor = (1 - topP) / ids.length;
  const order = ids
    .flatMap((id, i) => (probabilities[i]! >= floor ? [{ id, p: probabilities[i]! }] : []))
    .sort((a, b) => b.p - a.p || a.id - b.id);
  let sum = 0;
  const kept = order.filter(({ p }) => {
    const before = sum;
    sum += p;
    return before < topP;
  });
  const mass = kept.reduce((total, { p }) => total + p, 0);
  return { ids: kept.map(({ id }) => id), probabilities: kept.map(({ p }) => p / mass) };
}

/** The candidate at a point of [0, 1) on the line of their probabilities. */
export function pick({ ids, probabilities }: Candidates, point: number): number {
  let sum = 0;
  for (const [i, probability] of probabilities.entries()) {
    sum += probability;
    if (point < sum) return ids[i]!;
  }
  return ids[ids.length - 1]!; // rounding left the sum below 1
}

/** log softmax of one entry, in nats. */
export function logProbabilityOf(logits: Float32Array, id: number): number {
  const peak = logits[likeliest(logits)]!;
  let total = 0;
  for (const logit of logits) total += Math.exp(logit - peak);
  return logits[id]! - peak - Math.log(total);
}

/** @throws NumericError for logits that say nothing: NaN or ∞ anywhere, −∞ everywhere */
export function checkLogits(logits: Float32Array): void {
  let allowed = 0;
  let bad = 0;
  for (; bad < logits.length; bad++) {
    // Neither NaN nor ∞ is less than ∞. A plain loop: this looks at a whole vocabulary for each token.
    if (!(logits[bad]! < Infinity)) break;
    if (logits[bad]! > -Infinity) allowed++;
  }
  if (bad === logits.length && allowed > 0) return;
  const id = bad % logits.length;
  throw new NumericError('generate: the model gives logits that are not finite', {
    id,
    logit: logits[id],
    help: 'Check the weights: a bad quantization or a diverged training run.',
  });
}
