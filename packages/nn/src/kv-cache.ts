import {
  concat,
  keep,
  putRows,
  ShapeError,
  slice,
  StateError,
  tensor1d,
  tidy,
  unrepeatable,
  zeros,
  type Tensor1D,
  type Tensor4D,
} from '@niwaki/tensor';
import type { Session } from '@niwaki/weights';

/** Rows by which the memory of a layer grows: what is cached is copied once in so many tokens, not for each of them. */
const rowsAtOnce = 64;

/**
 * Keys (rotated) and values of the tokens already seen, one pair a layer: 2 · layers · rows · kvHeads · headSize · 4 bytes
 * for each sequence of the batch, rows being lead and length in whole multiples of 64. The length grows once a pass, not once a
 * layer: a pass that fails half-way leaves the cache as it was.
 */
export interface KeyValueCache {
  /** Tokens cached: another number at each pass, so that a recording of what asks for it is none. */
  readonly length: number;
  /** Whether there are any. */
  readonly begun: boolean;
  /**
   * Keys and values of a layer with the new ones behind the cached, and behind these rows that no bound lets a query see:
   * [batch, rows, kvHeads, d], rows at least lead + length + new. The cache owns both, and may write over them in the next pass.
   * @param lead rows in front that stand for no token, which the first pass brings along
   */
  extend(layer: string, k: Tensor4D, v: Tensor4D, lead?: number): KeysAndValues;
  /**
   * The same cache for a pass that is recorded: new rows go behind as many tokens as `past` says, int32 [1] on the device, at
   * each replay, where `extend` otherwise takes `length`.
   */
  at(past: Tensor1D): KeyValueCache;
  /**
   * Makes room, so that passes of so many tokens in all write their rows into the memory that the layers have.
   * @returns whether what is cached moved
   */
  reserve(tokens: number): boolean;
  /** Makes what the layers were given in this pass part of the past. */
  advance(tokens: number): void;
  /** Forgets everything after the first `length` tokens. */
  truncate(length: number): void;
  bytes(): number;
  dispose(): void;
}

export interface KeysAndValues {
  readonly k: Tensor4D;
  readonly v: Tensor4D;
}

interface Layer extends KeysAndValues {
  readonly lead: number;
}

export function createKeyValueCache(): KeyValueCache {
  const layers = new Map<string, Layer>();
  let length = 0;
  const tokens = (): number => {
    unrepeatable();
    return length;
  };
  const put = (layer: string, next: Layer): KeysAndValues => {
    const old = layers.get(layer);
    old?.k.dispose();
    old?.v.dispose();
    layers.set(layer, next);
    return next;
  };
  /** Makes room for more tokens in a layer. */
  const grow = (layer: string, more: number): KeysAndValues => {
    const held = layers.get(layer)!;
    const kept = held.lead + length;
    const fits = kept + more <= held.k.shape[1];
    return fits ? held : put(layer, { k: withRoom(held.k, kept, more), v: withRoom(held.v, kept, more), lead: held.lead });
  };
  const free = (): void => {
    for (const { k, v } of layers.values()) {
      k.dispose();
      v.dispose();
    }
    layers.clear();
  };
  const cacheAt = (past?: Tensor1D): KeyValueCache => ({
    get length() {
      return tokens();
    },
    get begun() {
      return length > 0;
    },
    at: cacheAt,
    extend: (layer, k, v, lead = 0) => {
      const held = layers.get(layer);
      const fresh = k.shape[1];
      if (held === undefined || length === 0) return put(layer, { k: withRoom(k, fresh, 0), v: withRoom(v, fresh, 0), lead });
      if (held.lead !== lead) {
        throw new StateError(
          `the cache of '${layer}' begins with ${held.lead} rows of a prompt or prefix, the active adapters bring ${lead}`,
          {
            layer,
            expected: held.lead,
            given: lead,
            help: 'Begin with a new cache after switching adapters.',
          },
        );
      }
      const old = grow(layer, fresh);
      const joined = (target: Tensor4D, rows: Tensor4D): Tensor4D =>
        keep(tidy(() => putRows(target, rows, past ?? tensor1d([tokens()], 'int32'), { lead, owned: true })));
      return put(layer, { k: joined(old.k, k), v: joined(old.v, v), lead });
    },
    reserve: (more) => [...layers].map(([layer, held]) => grow(layer, more) !== held).includes(true),
    advance: (more) => {
      length += more;
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
  });
  return cacheAt();
}

/** The first `kept` rows, and behind them room for `more` and to the next multiple of `rowsAtOnce`, as a tensor that is kept. */
function withRoom(rows: Tensor4D, kept: number, more: number): Tensor4D {
  const [batch, , heads, size] = rows.shape;
  const room = Math.ceil((kept + more) / rowsAtOnce) * rowsAtOnce - kept;
  return keep(
    tidy(() => {
      const behind = room === 0 ? [] : [zeros([batch, room, heads, size]) as Tensor4D];
      return concat([slice(rows, [0, 0, 0, 0], [batch, kept, heads, size]), ...behind], 1);
    }),
  );
}

/** The cache of a generation, if the call belongs to one. */
export const cacheOf = (session: Session | undefined): KeyValueCache | undefined => session?.['cache'] as KeyValueCache | undefined;
