/**
 * Adam on moments of 8 bits, block by block: both moments of a block are decoded into scratch, updated, and encoded again
 * from there. Every number is computed as `adam` and the host's coding of blocks compute it, bit for bit.
 */
import { loadEntries, storeEntries } from './entries';
import { laneMax, least } from './lanes';
import { adamDirection, nextMomentum, nextVariance } from './moments';

/** Rows of a half of a search table, and the leading bits of the magnitude of its row 1: `codeTable` of src/block-code.ts. */
const ROWS: i32 = 5890;
const BEFORE: i32 = 26623;
const DROPPED: i32 = 15;

/** Where the parts of the tables lie: maps, boundaries and codes, each for the first moment and then for the second. */
const VARIANCE_MAP: usize = 1024;
const MOMENTUM_BOUNDARIES: usize = 2048;
const VARIANCE_BOUNDARIES: usize = MOMENTUM_BOUNDARIES + 8 * ROWS;
const MOMENTUM_CODES: usize = VARIANCE_BOUNDARIES + 4 * ROWS;
const VARIANCE_CODES: usize = MOMENTUM_CODES + 4 * ROWS;

/** Values that codes stand for, before their scale; zeros up to a multiple of 4. */
function decode(codes: usize, map: usize, count: i32, out: usize): void {
  let i = 0;
  for (; i < count; i++) store<f32>(out + ((<usize>i) << 2), load<f32>(map + ((<usize>load<u8>(codes + i)) << 2)));
  for (; i & 3; i++) store<f32>(out + ((<usize>i) << 2), 0);
}

/**
 * Codes of `count` values and zeros after them up to a multiple of 4. The values, divided by their scale, become magnitudes
 * in place, and the rows of the table where they are found lie beside them; then each is one comparison.
 */
function encode(values: usize, rows: usize, scale: f32, signed: bool, boundaries: usize, codes: usize, count: i32, out: usize): void {
  const divisor = f32x4.splat(scale === 0 ? 1 : scale);
  const before = i32x4.splat(BEFORE);
  const last = i32x4.splat(ROWS - 1);
  const bytes = ((<usize>count + 3) & ~3) << 2;
  for (let i: usize = 0; i < bytes; i += 16) {
    const quotient = f32x4.div(v128.load(values + i), divisor);
    const magnitude = f32x4.abs(quotient);
    let row = i32x4.min_s(i32x4.max_s(i32x4.sub(i32x4.shr_u(magnitude, DROPPED), before), i32x4.splat(0)), last);
    if (signed) row = i32x4.add(row, v128.and(i32x4.shr_s(quotient, 31), i32x4.splat(ROWS)));
    v128.store(values + i, magnitude);
    v128.store(rows + i, row);
  }
  for (let i: usize = 0; i < bytes; i += 4) {
    const row = <usize>load<u32>(rows + i);
    const beyond: usize = load<f32>(values + i) > load<f32>(boundaries + (row << 2)) ? 1 : 0;
    store<u8>(out + (i >> 2), load<u8>(codes + (row << 1) + beyond));
  }
}

/** Bytes of scratch of `codedAdam`. */
export function codedAdamBytes(blockSize: i32): i32 {
  return 12 * blockSize;
}

/** Task t: blocks [t · taskBlocks, ...). `factors`: the two corrections. */
export function codedAdam(
  tables: usize,
  gradient: usize,
  factors: usize,
  momentumCodes: usize,
  momentumScales: usize,
  varianceCodes: usize,
  varianceScales: usize,
  direction: usize,
  newMomentumCodes: usize,
  newMomentumScales: usize,
  newVarianceCodes: usize,
  newVarianceScales: usize,
  size: i32,
  blockSize: i32,
  beta1: f32,
  beta2: f32,
  eps: f32,
  rest1: f32,
  rest2: f32,
  taskBlocks: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const c1 = v128.load32_splat(factors);
  const c2 = v128.load32_splat(factors, 4);
  const momentum = scratch;
  const variance = momentum + ((<usize>blockSize) << 2);
  const rows = variance + ((<usize>blockSize) << 2);
  const blocks = (size + blockSize - 1) / blockSize;
  const end = least(blocks, last * taskBlocks);
  for (let block = first * taskBlocks; block < end; block++) {
    const start = block * blockSize;
    const count = least(blockSize, size - start);
    const at = (<usize>block) << 2;
    decode(momentumCodes + start, tables, count, momentum);
    decode(varianceCodes + start, tables + VARIANCE_MAP, count, variance);
    const momentumScale = v128.load32_splat(momentumScales + at);
    const varianceScale = v128.load32_splat(varianceScales + at);
    const g0 = gradient + ((<usize>start) << 2);
    const d0 = direction + ((<usize>start) << 2);
    let largestM = f32x4.splat(0);
    let largestV = largestM;
    for (let i = 0; i < count; i += 4) {
      const offset = (<usize>i) << 2;
      const left = count - i;
      const g = loadEntries(g0 + offset, left);
      const m = nextMomentum(f32x4.mul(v128.load(momentum + offset), momentumScale), g, beta1, rest1);
      const v = nextVariance(f32x4.mul(v128.load(variance + offset), varianceScale), g, beta2, rest2);
      const d = adamDirection(m, v, c1, c2, eps);
      storeEntries(d0 + offset, d, left);
      v128.store(momentum + offset, m);
      v128.store(variance + offset, v);
      largestM = f32x4.max(largestM, f32x4.abs(m));
      largestV = f32x4.max(largestV, f32x4.abs(v));
    }
    const m = laneMax(largestM);
    const v = laneMax(largestV);
    store<f32>(newMomentumScales + at, m);
    store<f32>(newVarianceScales + at, v);
    encode(momentum, rows, m, true, tables + MOMENTUM_BOUNDARIES, tables + MOMENTUM_CODES, count, newMomentumCodes + start);
    encode(variance, rows, v, false, tables + VARIANCE_BOUNDARIES, tables + VARIANCE_CODES, count, newVarianceCodes + start);
  }
}
