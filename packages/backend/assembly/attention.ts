/**
 * Attention in blocks of queries and keys (Dao et al. 2022): scores live in one block of scratch and are never stored.
 * Query i sees the keys from[i] <= j < to[i], and where it sees any those before `always` that are before to[i]; blocks of
 * keys that no query of a block sees are not visited, so a causal mask halves the work. All query heads of one kv head share that head's packed keys and values.
 */
import { exp1, exp4, log } from './exp';
import { multiplyBlock } from './gemm';
import { addRows, multiplyRowsTransposed } from './gemv';
import { laneMax, laneSum, least, madd } from './lanes';
import { packPanels, packTiles } from './packing';

const QUERIES: i32 = 48;
const KEYS: i32 = 128;
/** Stands for "no score yet": finite, so that differences stay finite. */
const NOTHING: f32 = -1e30;

// @ts-ignore: decorator
@inline
function padded(d: i32): i32 {
  return (d + 7) & ~7;
}

/** Bytes of scratch of `attention` for heads of width d, `group` of them to a kv head. */
export function attentionBytes(d: i32, group: i32): i32 {
  const perHead = 2 * QUERIES * d + 2 * QUERIES;
  return 256 + 4 * (group * perHead + KEYS * d + KEYS * padded(d) + 2 * QUERIES * KEYS);
}

/** The keys that queries [q0, q0 + rows) of one batch see, as a range that contains them all. */
// @ts-ignore: decorator
@inline
function firstKey(from: usize, to: usize, rows: i32, keys: i32): i32 {
  let low = keys;
  for (let i = 0; i < rows; i++) {
    const f = load<i32>(from + ((<usize>i) << 2));
    if (f < load<i32>(to + ((<usize>i) << 2)) && f < low) low = f;
  }
  return low < 0 ? 0 : low;
}

// @ts-ignore: decorator
@inline
function endKey(from: usize, to: usize, rows: i32, keys: i32): i32 {
  let high = 0;
  for (let i = 0; i < rows; i++) {
    const t = load<i32>(to + ((<usize>i) << 2));
    if (load<i32>(from + ((<usize>i) << 2)) < t && t > high) high = t;
  }
  return least(high, keys);
}

/**
 * What a query sees of the `width` keys from k0 on, `always` of them in any case, as [lower, upper, led, gap]: those from lower
 * to upper, but not those from led to gap where gap is not 0. `from` and `to` hold its own keys' bounds.
 */
// @ts-ignore: decorator
@inline
function seenKeys(from: usize, to: usize, k0: i32, width: i32, always: i32): v128 {
  const f = load<i32>(from);
  const t = load<i32>(to);
  const lower = max(0, f - k0);
  const upper = least(width, t - k0);
  const led = f < t ? least(always, upper) : 0;
  if (led <= 0) return i32x4(lower, upper, led, 0);
  return i32x4(0, lower >= upper ? led : upper, led, lower > led && lower < upper ? lower : 0);
}

/** Scores between the keys that are always seen and a query's own: what never is the peak. */
function cover(row: usize, from: i32, to: i32): void {
  for (let i = from; i < to; i++) store<f32>(row + ((<usize>i) << 2), NOTHING);
}

/** Task t: one block of queries of one kv head of one batch, all query heads of the group. */
export function attention(
  q: usize,
  k: usize,
  v: usize,
  from: usize,
  to: usize,
  y: usize,
  logSumExp: usize,
  time: i32,
  keys: i32,
  heads: i32,
  kvHeads: i32,
  d: i32,
  always: i32,
  scale: f32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  if (time === 1) {
    attentionOfOne(q, k, v, from, to, y, logSumExp, keys, heads, kvHeads, d, always, scale, first, last, scratch);
    return;
  }
  const group = heads / kvHeads;
  const blocks = (time + QUERIES - 1) / QUERIES;
  const strideQ = heads * d;
  const strideK = kvHeads * d;
  // Scratch: per head [packed q, sums of values, peaks, totals]; then packed k, packed v, scores, packed weights.
  const headFloats = 2 * QUERIES * d + 2 * QUERIES;
  const packedK = scratch + 256 + ((<usize>(group * headFloats)) << 2);
  const packedV = packedK + ((<usize>(KEYS * d)) << 2);
  const scores = packedV + ((<usize>(KEYS * padded(d))) << 2);
  const weights = scores + ((<usize>(QUERIES * KEYS)) << 2);

  for (let task = first; task < last; task++) {
    const batch = task / (kvHeads * blocks);
    const kvHead = (task / blocks) % kvHeads;
    const q0 = (task % blocks) * QUERIES;
    const rows = least(QUERIES, time - q0);
    const bounds = (<usize>(batch * time + q0)) << 2;
    for (let g = 0; g < group; g++) {
      const own = scratch + 256 + ((<usize>(g * headFloats)) << 2);
      const source = q + ((<usize>((batch * time + q0) * strideQ + (kvHead * group + g) * d)) << 2);
      packTiles(source, strideQ, 0, rows, d, own);
      memory.fill(own + ((<usize>(QUERIES * d)) << 2), 0, (<usize>(QUERIES * d)) << 2);
      const peaks = own + ((<usize>(2 * QUERIES * d)) << 2);
      for (let i = 0; i < rows; i++) {
        store<f32>(peaks + ((<usize>i) << 2), NOTHING);
        store<f32>(peaks + ((<usize>(QUERIES + i)) << 2), 0);
      }
    }
    const end = endKey(from + bounds, to + bounds, rows, keys);
    const own = firstKey(from + bounds, to + bounds, rows, keys);
    for (let k0 = always > 0 ? 0 : own; k0 < end; k0 += KEYS) {
      // Between the keys that are always seen and the first of the queries' own.
      if (k0 >= always && k0 < own) k0 = own;
      if (k0 >= end) break;
      const width = least(KEYS, end - k0);
      const source = (<usize>((batch * keys + k0) * strideK + kvHead * d)) << 2;
      packPanels(k + source, strideK, 1, width, d, packedK);
      packPanels(v + source, strideK, 0, d, width, packedV);
      for (let g = 0; g < group; g++) {
        const own = scratch + 256 + ((<usize>(g * headFloats)) << 2);
        const sums = own + ((<usize>(QUERIES * d)) << 2);
        const peaks = sums + ((<usize>(QUERIES * d)) << 2);
        multiplyBlock(rows, width, d, own, packedK, scores, KEYS, 0, scratch);
        for (let i = 0; i < rows; i++) {
          const sees = seenKeys(from + bounds + ((<usize>i) << 2), to + bounds + ((<usize>i) << 2), k0, width, always - k0);
          foldSeen(scores + ((<usize>(i * KEYS)) << 2), sees, width, scale, peaks + ((<usize>i) << 2), sums + ((<usize>(i * d)) << 2), d);
        }
        packTiles(scores, KEYS, 0, rows, width, weights);
        multiplyBlock(rows, d, width, weights, packedV, sums, d, 1, scratch);
      }
    }
    for (let g = 0; g < group; g++) {
      const head = kvHead * group + g;
      const sums = scratch + 256 + ((<usize>(g * headFloats + QUERIES * d)) << 2);
      const peaks = sums + ((<usize>(QUERIES * d)) << 2);
      for (let i = 0; i < rows; i++) {
        const out = y + ((<usize>((batch * time + q0 + i) * strideQ + head * d)) << 2);
        const lse = logSumExp + ((<usize>((batch * heads + head) * time + q0 + i)) << 2);
        finishRow(sums + ((<usize>(i * d)) << 2), peaks + ((<usize>i) << 2), out, lse, d);
      }
    }
  }
}

/**
 * Task t: the one query of one kv head of one batch, as generation has it, four query heads at a time: keys and values are
 * read where they lie, since a product with so few rows costs less than packing them. Exported to stay a function of its own:
 * engines allot registers for a whole function at a time.
 */
export function attentionOfOne(
  q: usize,
  k: usize,
  v: usize,
  from: usize,
  to: usize,
  y: usize,
  logSumExp: usize,
  keys: i32,
  heads: i32,
  kvHeads: i32,
  d: i32,
  always: i32,
  scale: f32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const group = heads / kvHeads;
  const strideK = kvHeads * d;
  const sums = scratch + 256;
  const peaks = sums + ((<usize>(4 * d)) << 2);
  const scores = peaks + ((<usize>(2 * QUERIES)) << 2);
  for (let task = first; task < last; task++) {
    const batch = task / kvHeads;
    const kvHead = task % kvHeads;
    const bounds = (<usize>batch) << 2;
    const end = endKey(from + bounds, to + bounds, 1, keys);
    const own = firstKey(from + bounds, to + bounds, 1, keys);
    for (let g = 0; g < group; g += 4) {
      const rows = least(4, group - g);
      const head = batch * heads + kvHead * group + g;
      memory.fill(sums, 0, (<usize>(rows * d)) << 2);
      for (let i: usize = 0; i < 4; i++) {
        store<f32>(peaks + (i << 2), NOTHING);
        store<f32>(peaks + ((QUERIES + i) << 2), 0);
      }
      for (let k0 = always > 0 ? 0 : own; k0 < end; k0 += KEYS) {
        if (k0 >= always && k0 < own) k0 = own;
        if (k0 >= end) break;
        const width = least(KEYS, end - k0);
        const source = (<usize>((batch * keys + k0) * strideK + kvHead * d)) << 2;
        multiplyRowsTransposed(q + ((<usize>(head * d)) << 2), k + source, strideK, scores, rows, width, d, width, 0, 1, 0);
        const sees = seenKeys(from + bounds, to + bounds, k0, width, always - k0);
        for (let i = 0; i < rows; i++)
          foldSeen(scores + ((<usize>(i * width)) << 2), sees, width, scale, peaks + ((<usize>i) << 2), sums + ((<usize>(i * d)) << 2), d);
        addRows(rows, width, scores, v + source, strideK, sums, d, d);
      }
      for (let i = 0; i < rows; i++) {
        const row = <usize>(head + i);
        finishRow(sums + ((<usize>(i * d)) << 2), peaks + ((<usize>i) << 2), y + ((row * d) << 2), logSumExp + (row << 2), d);
      }
    }
  }
}

/** A row's sums over its total, and the logarithm of the latter; zeros where it saw nothing. */
function finishRow(sums: usize, peak: usize, y: usize, logSumExp: usize, d: i32): void {
  const total = load<f32>(peak + ((<usize>QUERIES) << 2));
  scaleRow(sums, total > 0 ? <f32>1 / total : 0, y, d);
  store<f32>(logSumExp, total > 0 ? load<f32>(peak) + log(total) : <f32>0);
}

/** `foldRow` over what `seenKeys` says, with nothing between the keys that are always seen and the query's own. */
function foldSeen(row: usize, sees: v128, width: i32, scale: f32, peak: usize, sums: usize, d: i32): void {
  const led = i32x4.extract_lane(sees, 2);
  const gap = i32x4.extract_lane(sees, 3);
  if (gap > 0) cover(row, led, gap);
  foldRow(row, i32x4.extract_lane(sees, 0), i32x4.extract_lane(sees, 1), width, scale, peak, sums, d);
  if (gap > 0) memory.fill(row + ((<usize>led) << 2), 0, (<usize>(gap - led)) << 2);
}

/**
 * One row of scores becomes weights exp(scale · score - peak), 0 outside of [lower, upper); the row's peak and total are
 * updated and its sums so far rescaled to the new peak.
 */
function foldRow(row: usize, lower: i32, upper: i32, width: i32, scale: f32, peak: usize, sums: usize, d: i32): void {
  if (lower >= upper) {
    memory.fill(row, 0, (<usize>width) << 2);
    return;
  }
  if (lower > 0) memory.fill(row, 0, (<usize>lower) << 2);
  if (upper < width) memory.fill(row + ((<usize>upper) << 2), 0, (<usize>(width - upper)) << 2);
  const at = row + ((<usize>lower) << 2);
  const count = upper - lower;
  let lanes = f32x4.splat(NOTHING);
  let i = 0;
  for (; i + 4 <= count; i += 4) lanes = f32x4.pmax(lanes, v128.load(at + ((<usize>i) << 2)));
  let high = laneMax(lanes);
  for (; i < count; i++) high = max(high, load<f32>(at + ((<usize>i) << 2)));
  const before = load<f32>(peak);
  const after = max(before, high * scale);
  const p = f32x4.splat(-after);
  const s = f32x4.splat(scale);
  lanes = f32x4.splat(0);
  i = 0;
  for (; i + 4 <= count; i += 4) {
    const w = exp4(madd(v128.load(at + ((<usize>i) << 2)), s, p));
    v128.store(at + ((<usize>i) << 2), w);
    lanes = f32x4.add(lanes, w);
  }
  let sum = laneSum(lanes);
  for (; i < count; i++) {
    const w = f32x4.extract_lane(exp4(madd(v128.load32_splat(at + ((<usize>i) << 2)), s, p)), 0);
    store<f32>(at + ((<usize>i) << 2), w);
    sum += w;
  }
  const total = peak + ((<usize>QUERIES) << 2);
  if (after > before) {
    const shrink = before === NOTHING ? <f32>0 : exp1(before - after);
    store<f32>(total, load<f32>(total) * shrink + sum);
    scaleRow(sums, shrink, sums, d);
    store<f32>(peak, after);
  } else store<f32>(total, load<f32>(total) + sum);
}

function scaleRow(x: usize, factor: f32, out: usize, d: i32): void {
  const f = f32x4.splat(factor);
  const bytes = (<usize>d) << 2;
  let i: usize = 0;
  for (; i + 16 <= bytes; i += 16) v128.store(out + i, f32x4.mul(v128.load(x + i), f));
  for (; i < bytes; i += 4) store<f32>(out + i, load<f32>(x + i) * factor);
}

/** Bytes of scratch of `attentionGrad`. */
export function attentionGradBytes(d: i32): i32 {
  return 256 + 4 * (2 * KEYS * d + KEYS * padded(d) + 2 * QUERIES * d + 2 * QUERIES * padded(d) + 3 * QUERIES * KEYS);
}

/** Queries at the front of [0, rows) that see no key from k0 on. */
// @ts-ignore: decorator
@inline
function blindRows(to: usize, rows: i32, k0: i32): i32 {
  let i = 0;
  while (i < rows && load<i32>(to + ((<usize>i) << 2)) <= k0) i++;
  return i;
}

/**
 * Task t: one kv head of one batch with all query heads of its group; or, where `share` is not 0, one query head of it, whose
 * part of dk and dv goes `share` bytes after that of the head before. Weights are computed again from the log-sum-exp; with
 * w = weights, D = rowsum(dy · y): dv = wᵀ·dy, ds = scale · w · (dy·vᵀ - D), dq = ds·k, dk = dsᵀ·q. dq, dk and dv must come
 * in as zeros.
 */
export function attentionGrad(
  dy: usize,
  q: usize,
  k: usize,
  v: usize,
  y: usize,
  logSumExp: usize,
  from: usize,
  to: usize,
  dq: usize,
  dk: usize,
  dv: usize,
  share: usize,
  time: i32,
  keys: i32,
  heads: i32,
  kvHeads: i32,
  d: i32,
  always: i32,
  scale: f32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const group = heads / kvHeads;
  const parts = share ? group : 1;
  const strideQ = heads * d;
  const strideK = kvHeads * d;
  const byKey = scratch + 256;
  const byValue = byKey + ((<usize>(KEYS * d)) << 2);
  const keyPanels = byValue + ((<usize>(KEYS * d)) << 2);
  const qTiles = keyPanels + ((<usize>(KEYS * padded(d))) << 2);
  const dyTiles = qTiles + ((<usize>(QUERIES * d)) << 2);
  const qPanels = dyTiles + ((<usize>(QUERIES * d)) << 2);
  const dyPanels = qPanels + ((<usize>(QUERIES * padded(d))) << 2);
  const weights = dyPanels + ((<usize>(QUERIES * padded(d))) << 2);
  const slopes = weights + ((<usize>(QUERIES * KEYS)) << 2);
  const tiles = slopes + ((<usize>(QUERIES * KEYS)) << 2);

  for (let task = first; task < last; task++) {
    const part = task % parts;
    const kvHead = (task / parts) % kvHeads;
    const batch = task / (parts * kvHeads);
    const firstHead = kvHead * group + part;
    const endHead = share ? firstHead + 1 : firstHead + group;
    for (let k0 = 0; k0 < keys; k0 += KEYS) {
      const width = least(KEYS, keys - k0);
      const atK = (<usize>((batch * keys + k0) * strideK + kvHead * d)) << 2;
      const toK = atK + part * share;
      let packed = 0;
      for (let block = 0; block < time; block += QUERIES) {
        const all = least(QUERIES, time - block);
        const before = (<usize>(batch * time + block)) << 2;
        const high = endKey(from + before, to + before, all, keys);
        if (high <= k0 || (k0 >= always && firstKey(from + before, to + before, all, keys) >= k0 + width)) continue;
        // Of the block only the queries and the keys that a causal mask leaves.
        const blind = blindRows(to + before, all, k0);
        const rows = all - blind;
        const q0 = block + blind;
        const bounds = before + ((<usize>blind) << 2);
        const seen = least(width, high - k0);
        if (packed === 0) {
          packPanels(k + atK, strideK, 1, width, d, byKey);
          packPanels(v + atK, strideK, 1, width, d, byValue);
        }
        if (packed !== seen) packPanels(k + atK, strideK, 0, d, seen, keyPanels);
        packed = seen;
        for (let head = firstHead; head < endHead; head++) {
          const atQ = (<usize>((batch * time + q0) * strideQ + head * d)) << 2;
          packTiles(q + atQ, strideQ, 0, rows, d, qTiles);
          packTiles(dy + atQ, strideQ, 0, rows, d, dyTiles);
          packPanels(q + atQ, strideQ, 0, d, rows, qPanels);
          packPanels(dy + atQ, strideQ, 0, d, rows, dyPanels);
          multiplyBlock(rows, seen, d, qTiles, byKey, weights, KEYS, 0, scratch);
          multiplyBlock(rows, seen, d, dyTiles, byValue, slopes, KEYS, 0, scratch);
          for (let i = 0; i < rows; i++) {
            const own = (<usize>(i * strideQ)) << 2;
            const sees = seenKeys(from + bounds + ((<usize>i) << 2), to + bounds + ((<usize>i) << 2), k0, seen, always - k0);
            const led = i32x4.extract_lane(sees, 2);
            const gap = i32x4.extract_lane(sees, 3);
            const total = load<f32>(logSumExp + ((<usize>((batch * heads + head) * time + q0 + i)) << 2));
            const at = (<usize>(i * KEYS)) << 2;
            slopeRow(weights + at, slopes + at, i32x4.extract_lane(sees, 0), i32x4.extract_lane(sees, 1), seen, scale, total, rowDot(dy + atQ + own, y + atQ + own, d));
            if (gap > 0) {
              memory.fill(weights + at + ((<usize>led) << 2), 0, (<usize>(gap - led)) << 2);
              memory.fill(slopes + at + ((<usize>led) << 2), 0, (<usize>(gap - led)) << 2);
            }
          }
          packTiles(weights, KEYS, 1, seen, rows, tiles);
          multiplyBlock(seen, d, rows, tiles, dyPanels, dv + toK, strideK, 1, scratch);
          packTiles(slopes, KEYS, 1, seen, rows, tiles);
          multiplyBlock(seen, d, rows, tiles, qPanels, dk + toK, strideK, 1, scratch);
          packTiles(slopes, KEYS, 0, rows, seen, tiles);
          multiplyBlock(rows, d, seen, tiles, keyPanels, dq + atQ, strideQ, 1, scratch);
        }
      }
    }
  }
}

function rowDot(a: usize, b: usize, d: i32): f32 {
  let lanes = f32x4.splat(0);
  const bytes = (<usize>d) << 2;
  let i: usize = 0;
  for (; i + 16 <= bytes; i += 16) lanes = madd(v128.load(a + i), v128.load(b + i), lanes);
  let sum = laneSum(lanes);
  for (; i < bytes; i += 4) sum += load<f32>(a + i) * load<f32>(b + i);
  return sum;
}

/** One row: scores become weights exp(scale · score - total), products dy·vᵀ become slopes scale · w · (product - dot); 0 outside of [lower, upper). */
function slopeRow(weights: usize, slopes: usize, lower: i32, upper: i32, width: i32, scale: f32, total: f32, dot: f32): void {
  if (lower >= upper) lower = upper = width;
  if (lower > 0) {
    memory.fill(weights, 0, (<usize>lower) << 2);
    memory.fill(slopes, 0, (<usize>lower) << 2);
  }
  if (upper < width) {
    memory.fill(weights + ((<usize>upper) << 2), 0, (<usize>(width - upper)) << 2);
    memory.fill(slopes + ((<usize>upper) << 2), 0, (<usize>(width - upper)) << 2);
  }
  const s = f32x4.splat(scale);
  const t = f32x4.splat(-total);
  const o = f32x4.splat(dot);
  let i = lower;
  for (; i + 4 <= upper; i += 4) {
    const at = (<usize>i) << 2;
    const w = exp4(madd(v128.load(weights + at), s, t));
    v128.store(weights + at, w);
    v128.store(slopes + at, f32x4.mul(f32x4.mul(w, s), f32x4.sub(v128.load(slopes + at), o)));
  }
  for (; i < upper; i++) {
    const at = (<usize>i) << 2;
    const w = f32x4.extract_lane(exp4(madd(v128.load32_splat(weights + at), s, t)), 0);
    store<f32>(weights + at, w);
    store<f32>(slopes + at, w * scale * (load<f32>(slopes + at) - dot));
  }
}
