import {
  ConfigError,
  denseParameter,
  expandGroups,
  packBits,
  packBytes,
  packedBytes,
  pickGroups,
  reshape,
  ShapeError,
  tidy,
  type Tensor2D,
} from '@niwaki/tensor';
import { expectLength } from './packed.ts';
import { atPositions, type Positions } from './positions.ts';
import type { Weight } from './weight.ts';

export interface NOfM {
  /** Entries kept of every m consecutive ones of a row. */
  readonly n: number;
  /** 4, 8, 16 or 32; it divides the row. */
  readonly m: number;
}

/** Bits of one index: a position within its group. */
export const indexBits = (m: number): number => Math.ceil(Math.log2(m));

/** @throws ConfigError */
export function checkNOfM({ n, m }: NOfM, what: string): void {
  if (![4, 8, 16, 32].includes(m)) throw new ConfigError(`${what}: m must be 4, 8, 16 or 32, got ${m}`, { m });
  if (!(Number.isInteger(n) && n >= 1 && n < m))
    throw new ConfigError(`${what}: n must be a whole number from 1 to ${m - 1}, got ${n}`, { n, m });
}

/** @throws ShapeError where groups would straddle rows */
export function checkGroups(path: string, [out, width]: readonly [number, number], { n, m }: NOfM): void {
  if (width % m === 0) return;
  throw new ShapeError(`'${path}' [${out}, ${width}]: rows of ${width} entries are not groups of ${m} (${n}:${m})`, {
    path,
    width,
    m,
    help: 'Leave this matrix out, or choose an m that divides its rows.',
  });
}

/**
 * A matrix with n entries stored of every m: their values, and where they are in their group. Bits an entry: n/m · (bits of
 * a value + log2 m), so 2:4 takes 17 over f32 values, 9 over F16. The values are a weight of their own, [out, in · n / m],
 * in any format. A product costs a dense one and the workspace of `atPositions`.
 *
 * Parts: those of the values, under `path.values.`, and `index`.
 * @param path module path
 * @param values taken over
 * @param index log2 m bits a value, first value lowest (`packNOfM`)
 * @throws ShapeError, FormatError for parts that do not fit
 */
export function nOfM(
  path: string,
  shape: readonly [number, number],
  parts: { readonly values: Weight; readonly index: Uint8Array },
  options: NOfM,
): Weight {
  const { n, m } = options;
  const [out, width] = shape;
  checkNOfM(options, `'${path}'`);
  checkGroups(path, shape, options);
  const groups = (out * width) / m;
  const { values, index } = parts;
  const bits = indexBits(m);
  expectLength(`${path}.index`, index, packedBytes(groups * n, bits));
  const stored = denseParameter(`${path}.index`, packBytes(index), {
    role: 'index',
    shape: [groups, n],
    file: { dtype: 'U8', shape: [index.length], bytes: index.length },
  });
  const placed = { n, m, groups };
  const positions: Positions = {
    shape: [out, width],
    valuesShape: [out, (width / m) * n],
    expand: (given) => tidy(() => reshape(expandGroups(given, stored.read(), placed), [out, width]) as Tensor2D),
    pick: (dense) => tidy(() => reshape(pickGroups(dense, stored.read(), placed), [out, (width / m) * n]) as Tensor2D),
  };
  return atPositions(path, positions, {
    kind: 'n-of-m',
    options: { n, m, values: { kind: values.kind, options: values.options } },
    values,
    index: { index: stored },
    again: (next, target) => nOfM(target, shape, { values: next, index }, options),
  });
}

/**
 * Values and packed indices of a masked matrix. A group with fewer than n kept entries that are not 0 is filled up with
 * zeros at its lowest unused places, sorted in.
 * @param kept one byte an entry; all are where it is absent. Entries that are 0 are not worth a slot
 * @throws ShapeError where a group holds more than n
 */
export function packNOfM(
  path: string,
  dense: ArrayLike<number>,
  shape: readonly [number, number],
  { n, m, kept }: NOfM & { readonly kept?: ArrayLike<number> },
): { readonly values: Float32Array; readonly index: Uint8Array } {
  checkGroups(path, shape, { n, m });
  const groups = (shape[0] * shape[1]) / m;
  const values = new Float32Array(groups * n);
  const places = new Uint8Array(groups * n);
  for (let group = 0; group < groups; group++) {
    const from = group * m;
    const used = Array.from({ length: m }, (_, i) => i).filter((i) => (kept === undefined ? dense[from + i] !== 0 : kept[from + i] === 1));
    if (used.length > n) {
      throw new ShapeError(`'${path}': ${used.length} entries are kept in a group of ${m}, ${n}:${m} holds ${n}`, { path, group, n, m });
    }
    for (let i = 0; used.length < n; i++) if (!used.includes(i)) used.push(i);
    used.sort((a, b) => a - b);
    for (const [slot, i] of used.entries()) {
      places[group * n + slot] = i;
      values[group * n + slot] = kept === undefined || kept[from + i] === 1 ? dense[from + i]! : 0;
    }
  }
  return { values, index: packBits(places, { bits: indexBits(m) }) };
}
