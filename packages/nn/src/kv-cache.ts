import { concat, keep, putRows, ShapeError, slice, StateError, tidy, zeros, type Tensor4D } from '@niwaki/tensor';
import type { Session } from '@niwaki/weights';

/** Rows by which the memory of a layer grows: what is cached is copied once in so many tokens, not for each of them. */
const rowsAtOnce = 64;

/**
 * Keys (rotated) and values of the tokens already seen, one pair a layer: 2 · layers · rows · kvHeads · headSize · 4 bytes
 * for each sequence of the batch, rows being lead and length in whole multiples of 64. The length grows once a pass, not once a
 * layer: a pass that fails half-way leaves the cache as it was.
 */
export interface KeyValueCache {
  /** Tokens cached. */
  readonly length: number;
  /**
   * Keys and values of a layer with the new ones behind the cached, and behind these rows that no bound lets a query see:
   * [batch, rows, kvHeads, d], rows at least lead + length + new. The cache owns both, and may write over them in the next pass.
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
    const [batch, fresh, heads, size] = next.shape;
    const past = length === 0 ? undefined : old;
    const kept = past === undefined ? 0 : lead + length;
    if (past !== undefined && kept + fresh <= past.shape[1]) return keep(putRows(past, next, kept, { owned: true }));
    const room = Math.ceil((kept + fresh) / rowsAtOnce) * rowsAtOnce - kept - fresh;
    return keep(
      tidy(() => {
        const before = past === undefined ? [] : [slice(past, [0, 0, 0, 0], [batch, kept, heads, size])];
        const behind = room === 0 ? [] : [zeros([batch, room, heads, size]) as Tensor4D];
        return concat([...before, next, ...behind], 1);
      }),
    );
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
