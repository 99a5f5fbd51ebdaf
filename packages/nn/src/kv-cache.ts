import { concat, keep, ShapeError, slice, StateError, type Tensor4D } from '@niwaki/tensor';
import type { Session } from '@niwaki/weights';

/**
 * Keys (rotated) and values of the tokens already seen, one pair a layer: 2 · layers · length · kvHeads · headSize · 4
 * bytes for each row of the batch. The length grows once a pass, not once a layer: a pass that fails half-way leaves the
 * cache as it was.
 */
export interface KeyValueCache {
  /** Tokens cached. */
  readonly length: number;
  /**
   * Keys and values of a layer with the new ones behind the cached: the cache owns both. [batch, lead + length + new, kvHeads, d]
   * @param lead rows in front that stand for no token, which the first pass brings along
   */
  extend(layer: string, k: Tensor4D, v: Tensor4D, lead?: number): { readonly k: Tensor4D; readonly v: Tensor4D };
  /** Makes what the layers were given in this pass part of the past. */
  advance(tokens: number): void;
  /** Forgets everything after the first `length` tokens. */
  truncate(length: number): void;
  bytes(): number;
  dispose(): void;
}

export function createKeyValueCache(): KeyValueCache {
  const layers = new Map<string, { k: Tensor4D; v: Tensor4D; lead: number }>();
  let length = 0;
  const joined = (old: Tensor4D | undefined, next: Tensor4D, lead: number): Tensor4D => {
    if (old === undefined || length === 0) return keep(next.clone());
    const [batch, rows, heads, size] = old.shape;
    const kept = lead + length;
    const past = rows === kept ? old : slice(old, [0, 0, 0, 0], [batch, kept, heads, size]);
    const whole = keep(concat([past, next], 1));
    if (past !== old) past.dispose();
    return whole;
  };
  const free = (): void => {
    for (const { k, v } of layers.values()) {
      k.dispose();
      v.dispose();
    }
    layers.clear();
  };
  return {
    get length() {
      return length;
    },
    extend: (layer, k, v, lead = 0) => {
      const old = layers.get(layer);
      if (old !== undefined && length > 0 && old.lead !== lead) {
        throw new StateError(
          `the cache of '${layer}' begins with ${old.lead} rows of a prompt or prefix, the active adapters bring ${lead}`,
          {
            layer,
            expected: old.lead,
            given: lead,
            help: 'Begin with a new cache after switching adapters.',
          },
        );
      }
      const next = { k: joined(old?.k, k, lead), v: joined(old?.v, v, lead), lead };
      old?.k.dispose();
      old?.v.dispose();
      layers.set(layer, next);
      return next;
    },
    advance: (tokens) => {
      length += tokens;
    },
    truncate: (to) => {
      if (!Number.isInteger(to) || to < 0 || to > length)
        throw new ShapeError(`the cache holds ${length} tokens, it cannot be cut to ${to}`, { length, to });
      length = to;
    },
    bytes: () => [...layers.values()].reduce((sum, { k, v }) => sum + 4 * (k.size + v.size), 0),
    dispose: () => {
      free();
      length = 0;
    },
  };
}

/** The cache of a generation, if the call belongs to one. */
export const cacheOf = (session: Session | undefined): KeyValueCache | undefined => session?.['cache'] as KeyValueCache | undefined;
