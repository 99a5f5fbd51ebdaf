/** A matrix between its codes: groups one after another, each with its scale and zero. See src/ops/soft-round.ts of the tensor package. */
import { exp4, log4 } from './exp';
import { loadEntries, storeEntries } from './entries';
import { laneSum, least, madd } from './lanes';

const HIGH: f32 = 1.1;
const LOW: f32 = -0.1;
const MARGIN: f32 = 1e-4;

// @ts-ignore: decorator
@inline
function clamp4(x: v128, from: v128, to: v128): v128 {
  return f32x4.pmax(from, f32x4.pmin(to, x));
}

/** σ(V₀ + v), where V₀ makes h the fraction of `place`. */
// @ts-ignore: decorator
@inline
function gate4(place: v128, v: v128): v128 {
  const fraction = clamp4(f32x4.sub(place, f32x4.floor(place)), f32x4.splat(MARGIN), f32x4.splat(1 - MARGIN));
  const start = f32x4.sub(fraction, f32x4.splat(LOW));
  const rest = f32x4.mul(f32x4.sub(f32x4.splat(HIGH), fraction), exp4(f32x4.neg(v)));
  return f32x4.div(start, f32x4.add(start, rest));
}

/** h */
// @ts-ignore: decorator
@inline
function up4(gate: v128): v128 {
  return clamp4(f32x4.add(f32x4.mul(gate, f32x4.splat(HIGH - LOW)), f32x4.splat(LOW)), f32x4.splat(0), f32x4.splat(1));
}

/** dh/dv */
// @ts-ignore: decorator
@inline
function slope4(gate: v128, up: v128): v128 {
  const steep = f32x4.mul(f32x4.mul(gate, f32x4.sub(f32x4.splat(1), gate)), f32x4.splat(HIGH - LOW));
  return v128.and(steep, v128.and(f32x4.gt(up, f32x4.splat(0)), f32x4.lt(up, f32x4.splat(1))));
}

/** Task t: groups [t · taskGroups, ...) of y = s · (clamp(⌊w/s⌋ + h + zero, 0, most) - zero). */
export function softRound(
  w: usize,
  logits: usize,
  scales: usize,
  zeros: usize,
  y: usize,
  groups: i32,
  size: i32,
  most: f32,
  taskGroups: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const bytes = (<usize>size) << 2;
  const end = least(groups, last * taskGroups);
  for (let group = first * taskGroups; group < end; group++) {
    const scale = v128.load32_splat(scales + ((<usize>group) << 2));
    const zero = v128.load32_splat(zeros + ((<usize>group) << 2));
    const start = group * bytes;
    for (let i = 0; i < size; i += 4) {
      const at = start + ((<usize>i) << 2);
      const place = f32x4.div(loadEntries(w + at, size - i), scale);
      const up = up4(gate4(place, loadEntries(logits + at, size - i)));
      const level = f32x4.add(f32x4.add(f32x4.floor(place), zero), up);
      const offset = f32x4.sub(clamp4(level, f32x4.splat(0), f32x4.splat(most)), zero);
      storeEntries(y + at, f32x4.mul(scale, offset), size - i);
    }
  }
}

/** Task t: the same groups of dscales and dlogits. */
export function softRoundGrad(
  dy: usize,
  w: usize,
  logits: usize,
  scales: usize,
  zeros: usize,
  dscales: usize,
  dlogits: usize,
  groups: i32,
  size: i32,
  most: f32,
  taskGroups: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const bytes = (<usize>size) << 2;
  const end = least(groups, last * taskGroups);
  const highest = f32x4.splat(most);
  const nothing = f32x4.splat(0);
  for (let group = first * taskGroups; group < end; group++) {
    const scale = v128.load32_splat(scales + ((<usize>group) << 2));
    const zero = v128.load32_splat(zeros + ((<usize>group) << 2));
    const start = group * bytes;
    let sums = nothing;
    for (let i = 0; i < size; i += 4) {
      const at = start + ((<usize>i) << 2);
      const d = loadEntries(dy + at, size - i);
      const place = f32x4.div(loadEntries(w + at, size - i), scale);
      const gate = gate4(place, loadEntries(logits + at, size - i));
      const up = up4(gate);
      const level = f32x4.add(f32x4.add(f32x4.floor(place), zero), up);
      const inside = v128.and(f32x4.ge(level, nothing), f32x4.le(level, highest));
      const offset = f32x4.sub(clamp4(level, nothing, highest), zero);
      sums = madd(d, f32x4.sub(offset, v128.and(place, inside)), sums);
      storeEntries(dlogits + at, f32x4.mul(v128.and(f32x4.mul(d, scale), inside), slope4(gate, up)), size - i);
    }
    store<f32>(dscales + ((<usize>group) << 2), laneSum(sums));
  }
}

/** |c|^exponent for |c| in [0, 1]: 0 becomes the smallest number there is. */
// @ts-ignore: decorator
@inline
function power4(c: v128, exponent: f32): v128 {
  return exp4(f32x4.mul(log4(f32x4.abs(c)), f32x4.splat(exponent)));
}

// @ts-ignore: decorator
@inline
function centered4(up: v128): v128 {
  return f32x4.sub(f32x4.add(up, up), f32x4.splat(1));
}

/** Task t: groups [t · taskGroups, ...) of the sums of 1 - |2h - 1|^sharpness. */
export function undecided(
  w: usize,
  logits: usize,
  scales: usize,
  y: usize,
  groups: i32,
  size: i32,
  sharpness: f32,
  taskGroups: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const bytes = (<usize>size) << 2;
  const end = least(groups, last * taskGroups);
  for (let group = first * taskGroups; group < end; group++) {
    const scale = v128.load32_splat(scales + ((<usize>group) << 2));
    const start = group * bytes;
    let sums = f32x4.splat(0);
    for (let i = 0; i < size; i += 4) {
      const at = start + ((<usize>i) << 2);
      const place = f32x4.div(loadEntries(w + at, size - i), scale);
      const c = centered4(up4(gate4(place, loadEntries(logits + at, size - i))));
      const here = i32x4.lt_s(i32x4(0, 1, 2, 3), i32x4.splat(size - i));
      sums = f32x4.add(sums, v128.and(f32x4.sub(f32x4.splat(1), power4(c, sharpness)), here));
    }
    store<f32>(y + ((<usize>group) << 2), laneSum(sums));
  }
}

/** Task t: the same groups of dlogits; dy by group. */
export function undecidedGrad(
  dy: usize,
  w: usize,
  logits: usize,
  scales: usize,
  dlogits: usize,
  groups: i32,
  size: i32,
  sharpness: f32,
  taskGroups: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const bytes = (<usize>size) << 2;
  const end = least(groups, last * taskGroups);
  for (let group = first * taskGroups; group < end; group++) {
    const scale = v128.load32_splat(scales + ((<usize>group) << 2));
    const factor = f32x4.mul(v128.load32_splat(dy + ((<usize>group) << 2)), f32x4.splat(-2 * sharpness));
    const start = group * bytes;
    for (let i = 0; i < size; i += 4) {
      const at = start + ((<usize>i) << 2);
      const place = f32x4.div(loadEntries(w + at, size - i), scale);
      const gate = gate4(place, loadEntries(logits + at, size - i));
      const up = up4(gate);
      const c = centered4(up);
      const signed = v128.or(power4(c, sharpness - 1), v128.and(c, i32x4.splat(0x80000000)));
      storeEntries(dlogits + at, f32x4.mul(f32x4.mul(signed, factor), slope4(gate, up)), size - i);
    }
  }
}
