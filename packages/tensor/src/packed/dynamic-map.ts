import { NumericError } from '../errors.ts';

export interface DynamicMapOptions {
  /** Half of the codes for negative numbers, or all for numbers that are at least 0. */
  readonly signed: boolean;
}

const decades = 7;
const { fround } = Math;

/**
 * The 256 values of the dynamic 8-bit code (Dettmers et al. 2022, section 1.3), ascending f32 in [-1, 1], not to be written to: a leading run
 * of zero bits chooses a decade from 1e-6 to 1, the bits left over a linear step inside it, so that small numbers keep
 * their digits. Signed code 127 and unsigned code 0 stand for 0; there is no -1.
 */
export function dynamicMap({ signed }: DynamicMapOptions): Float32Array {
  return once(`map ${signed}`, () => mapOf(signed));
}

/** Constants, made when first asked for: an optimizer needs them for every parameter of every step. */
const made = new Map<string, unknown>();
function once<T>(name: string, make: () => T): T {
  if (!made.has(name)) made.set(name, make());
  return made.get(name) as T;
}

function mapOf(signed: boolean): Float32Array {
  const values = [0, 1];
  for (let decade = 0; decade < decades; decade++) {
    const power = fround(10 ** (decade - decades + 1));
    for (const mean of meansOfSteps(signed ? 2 ** decade : 2 ** (decade + 1))) {
      const value = fround(power * mean);
      values.push(value);
      if (signed) values.push(-value);
    }
  }
  return Float32Array.from(values).sort();
}

/**
 * Middles of `count` equal steps from 0.1 to 1. The steps are those of torch.linspace, from the nearer end, product and
 * sum rounded once: the tables in bitsandbytes' files hold these f32, to the last bit.
 */
function meansOfSteps(count: number): number[] {
  const [from, to] = [fround(0.1), 1];
  const step = fround(fround(to - from) / count);
  const edges = Array.from({ length: count + 1 }, (_, i) =>
    i < Math.floor((count + 1) / 2) ? fround(from + step * i) : fround(to - step * (count - i)),
  );
  return Array.from({ length: count }, (_, i) => fround(fround(edges[i]! + edges[i + 1]!) / 2));
}

/** Buckets of the eighth root of a magnitude in [0, 1], 1 itself in one more: fine enough that a bucket holds one boundary between codes. */
export const codeBuckets = 2048;

/**
 * How a magnitude finds its code by two table look-ups and a comparison. Row `bucket = trunc(codeBuckets · u^(1/8))`:
 * the code is `base`, or the next one away from 0 where u > `boundary`. Signed maps have the rows of negative numbers
 * after those of positive ones, `codeBuckets + 1` further on.
 */
export interface CodeSearch {
  readonly base: Float32Array;
  readonly boundary: Float32Array;
}

/**
 * The search tables of a dynamic map: nearest code, ties toward 0. A negative number never becomes 0, since a first
 * moment's sign is the direction of an update.
 * @param options `guard`: neither does a positive one of an unsigned map: a second moment of 0 would make the next step huge
 */
export function codeSearch({ signed, guard }: DynamicMapOptions & { readonly guard: boolean }): CodeSearch {
  return once(`search ${signed} ${guard}`, () => searchOf({ signed, guard }));
}

function searchOf({ signed, guard }: DynamicMapOptions & { readonly guard: boolean }): CodeSearch {
  const { zero, positive, negative } = codeBoundaries({ signed, guard });
  const up = halfSearch(positive);
  if (!signed) return up;
  const down = halfSearch(negative);
  return {
    base: Float32Array.from([...up.base.map((steps) => zero + steps), ...down.base.map((steps) => zero - steps)]),
    boundary: Float32Array.from([...up.boundary, ...down.boundary]),
  };
}

/**
 * Where codes end, as f32 magnitudes, ascending from 0: a magnitude u of a positive number is as many codes above `zero` as
 * boundaries are below u; of a negative one as many below it.
 */
export function codeBoundaries({ signed, guard }: DynamicMapOptions & { readonly guard: boolean }): {
  readonly zero: number;
  readonly positive: Float32Array;
  readonly negative: Float32Array;
} {
  const map = dynamicMap({ signed });
  const zero = map.indexOf(0);
  return {
    zero,
    positive: middlesOf(map.slice(zero), { guard: guard && !signed }),
    negative: middlesOf(
      Float32Array.from({ length: zero + 1 }, (_, i) => -map[zero - i]!),
      { guard: true },
    ),
  };
}

function middlesOf(magnitudes: Float32Array, { guard }: { guard: boolean }): Float32Array {
  const middles = Float32Array.from({ length: magnitudes.length - 1 }, (_, i) => floorToF32((magnitudes[i]! + magnitudes[i + 1]!) / 2));
  if (guard) middles[0] = 0;
  return middles;
}

function halfSearch(middles: Float32Array): CodeSearch {
  const base = new Float32Array(codeBuckets + 1);
  const boundary = new Float32Array(codeBuckets + 1).fill(2);
  for (let bucket = 0, below = 0; bucket <= codeBuckets; bucket++) {
    base[bucket] = below;
    const end = ((bucket + 1) / codeBuckets) ** 8;
    if (!(middles[below]! < end)) continue;
    boundary[bucket] = middles[below]!;
    below++;
    if (middles[below]! < end) throw new NumericError(`internal: bucket ${bucket} holds two boundaries between codes`, { bucket });
  }
  return { base, boundary };
}

/** The largest f32 that is not above a number ≥ 0, so that comparing with it is comparing with the number. */
function floorToF32(value: number): number {
  const near = new Float32Array([value]);
  if (near[0]! > value) new Uint32Array(near.buffer)[0]! -= 1;
  return near[0]!;
}
