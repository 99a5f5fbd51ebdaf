/**
 * Writes the innermost loops as AssemblyScript. They are generated because every accumulator must be a variable of its
 * own, and because their exact statement order is what the machine runs: b first, then per row one splat and its products;
 * at most 12 accumulators; one k per turn (unrolling makes V8 hoist the loads and spill).
 */
const lines = (count, line) => Array.from({ length: count }, (_, i) => line(i)).join('\n');
const grid = (rows, columns, line) => lines(rows, (m) => lines(columns, (v) => line(m, v)));

/** c [rows, 8] = (or +=) tile [k][rows] · panel [k][8]. */
const tile = (rows) => `
export function tile${rows}(k: usize, a: usize, b: usize, c: usize, ldc: usize, accumulate: i32): void {
${grid(rows, 2, (m, v) => `  let c${m}_${v} = f32x4.splat(0);`)}
  while (k > 0) {
    const b0 = v128.load(b), b1 = v128.load(b, 16);
${lines(
  rows,
  (m) => `    const a${m} = v128.load32_splat(a, ${4 * m});
    c${m}_0 = madd(a${m}, b0, c${m}_0);
    c${m}_1 = madd(a${m}, b1, c${m}_1);`,
)}
    a += ${4 * rows}; b += 32; k -= 1;
  }
  ldc <<= 2;
  if (accumulate) {
${lines(rows, (m) => `    v128.store(c, f32x4.add(v128.load(c), c${m}_0)); v128.store(c, f32x4.add(v128.load(c, 16), c${m}_1), 16); c += ldc;`)}
  } else {
${lines(rows, (m) => `    v128.store(c, c${m}_0); v128.store(c, c${m}_1, 16); c += ldc;`)}
  }
}`;

/** c [rows, 4 · vectors] = a [rows, k] · b [k, 4 · vectors], b read where it lies. */
const stream = (rows, vectors) => `
export function stream${rows}(k: usize, a: usize, b: usize, ldb: usize, c: usize, ldc: usize): void {
${grid(rows, vectors, (m, v) => `  let c${m}_${v} = f32x4.splat(0);`)}
  const row = k << 2;
  ldb <<= 2;
  const end = a + row;
  while (a < end) {
${lines(vectors, (v) => `    const b${v} = v128.load(b, ${16 * v});`)}
${lines(rows, (m) => `    const a${m} = v128.load32_splat(a${m === 0 ? '' : ` + ${m} * row`});\n${lines(vectors, (v) => `    c${m}_${v} = madd(a${m}, b${v}, c${m}_${v});`)}`)}
    a += 4; b += ldb;
  }
  ldc <<= 2;
${lines(rows, (m) => `${lines(vectors, (v) => `  v128.store(c, c${m}_${v}, ${16 * v});`)}\n  c += ldc;`)}
}`;

/** Two columns of c [rows, ...] = a [rows, k] times two rows of length k, at b and next; two sums each hide the latency. */
const dots = (rows) => `
export function dots${rows}(k: i32, a: usize, b: usize, next: usize, c: usize, step: usize, ldc: usize): void {
${grid(rows, 2, (m, v) => `  let c${m}_${v} = f32x4.splat(0), d${m}_${v} = f32x4.splat(0);`)}
  const row = (<usize>k) << 2;
  let i = 0;
  for (; i + 8 <= k; i += 8) {
    const p0 = v128.load(b), q0 = v128.load(next), p1 = v128.load(b, 16), q1 = v128.load(next, 16);
${lines(
  rows,
  (m) => `    const a${m} = v128.load(a + ${m} * row), e${m} = v128.load(a + ${m} * row, 16);
    c${m}_0 = madd(a${m}, p0, c${m}_0); c${m}_1 = madd(a${m}, q0, c${m}_1); d${m}_0 = madd(e${m}, p1, d${m}_0); d${m}_1 = madd(e${m}, q1, d${m}_1);`,
)}
    a += 32; b += 32; next += 32;
  }
${grid(rows, 2, (m, v) => `  let s${m}_${v} = laneSum(f32x4.add(c${m}_${v}, d${m}_${v}));`)}
  for (; i < k; i++) {
    const p = load<f32>(b), q = load<f32>(next);
${lines(rows, (m) => `    const a${m} = load<f32>(a + ${m} * row); s${m}_0 += a${m} * p; s${m}_1 += a${m} * q;`)}
    a += 4; b += 4; next += 4;
  }
  ldc <<= 2;
${lines(rows, (m) => `  store<f32>(c, s${m}_0); store<f32>(c + step, s${m}_1); c += ldc;`)}
}`;

const streamVectors = [0, 8, 4, 3, 2];

export const microKernels = () =>
  [
    "import { laneSum, madd } from './lanes';",
    ...[1, 2, 3, 4, 5, 6].map(tile),
    ...[1, 2, 3, 4].map((rows) => stream(rows, streamVectors[rows])),
    ...[1, 2, 3, 4].map(dots),
  ].join('\n');
