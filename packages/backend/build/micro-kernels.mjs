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

/** How many rows of b are read side by side, so that the entries of a fit the registers as splats. */
const spreadDepth = [0, 4, 4, 2, 2];

/** c [rows, columns] += a [rows, k] · b [k, columns], both b and c read along their rows: nothing is packed. */
const spread = (rows) => {
  const depth = spreadDepth[rows];
  const name = (m, i) => `a${m}_${i}`;
  const pass = (steps) => `
${grid(rows, steps, (m, i) => `    const ${name(m, i)} = v128.load32_splat(a + ${m} * row, ${4 * i});`)}
    let j: usize = 0;
    for (; j + 16 <= bytes; j += 16) {
${lines(steps, (i) => `      const b${i} = v128.load(b + j${i === 0 ? '' : ` + ${i} * ldb`});`)}
${lines(
  rows,
  (m) => `      let c${m} = v128.load(c + ${m} * ldc + j);
${lines(steps, (i) => `      c${m} = madd(${name(m, i)}, b${i}, c${m});`)}
      v128.store(c + ${m} * ldc + j, c${m});`,
)}
    }
    for (; j < bytes; j += 4) {
${lines(steps, (i) => `      const b${i} = v128.load32_splat(b + j${i === 0 ? '' : ` + ${i} * ldb`});`)}
${lines(
  rows,
  (m) => `      let c${m} = v128.load32_splat(c + ${m} * ldc + j);
${lines(steps, (i) => `      c${m} = madd(${name(m, i)}, b${i}, c${m});`)}
      v128.store32_lane(c + ${m} * ldc + j, c${m}, 0);`,
)}
    }
    a += ${4 * steps}; b += ${steps} * ldb; i -= ${steps};`;
  return `
export function spread${rows}(k: i32, a: usize, b: usize, ldb: usize, c: usize, ldc: usize, columns: usize): void {
  const row = (<usize>k) << 2;
  ldb <<= 2;
  ldc <<= 2;
  const bytes = columns << 2;
  let i = k;
  while (i >= ${depth}) {${pass(depth)}
  }
  while (i > 0) {${pass(1)}
  }
}`;
};

/** Columns of the result that are summed side by side, and partial sums of each: eight to twelve sums hide the latency. */
const dotsShape = [
  [0, 0],
  [2, 4],
  [4, 1],
  [2, 1],
  [2, 1],
];

const sumOf = (count, term) => Array.from({ length: count }, (_, i) => term(i)).reduce((a, b) => `f32x4.add(${a}, ${b})`);

/** Some columns of c [rows, ...] = a [rows, k] times as many rows of b of length k; columns beyond `last` repeat it. */
const dots = (rows) => {
  const [columns, sums] = dotsShape[rows];
  const each = (line) => grid(rows, columns, line);
  const step = 4 * sums;
  return `
export function dots${rows}(k: i32, a: usize, b: usize, ldb: usize, last: i32, c: usize, ldc: usize): void {
  const row = (<usize>k) << 2;
  ldb <<= 2;
  ldc <<= 2;
${lines(columns, (j) => `  let b${j} = b + (<usize>least(${j}, last)) * ldb;`)}
${each((m, j) => lines(sums, (s) => `  let c${m}_${j}_${s} = f32x4.splat(0);`))}
  let i = 0;
  for (; i + ${step} <= k; i += ${step}) {
${lines(sums, (s) => lines(rows, (m) => `    const a${m}_${s} = v128.load(a + ${m} * row, ${16 * s});`))}
${lines(columns, (j) => lines(sums, (s) => `    const b${j}_${s} = v128.load(b${j}, ${16 * s});\n${lines(rows, (m) => `    c${m}_${j}_${s} = madd(a${m}_${s}, b${j}_${s}, c${m}_${j}_${s});`)}`))}
    a += ${16 * sums};
${lines(columns, (j) => `    b${j} += ${16 * sums};`)}
  }
${each((m, j) => `  let s${m}_${j} = laneSum(${sumOf(sums, (s) => `c${m}_${j}_${s}`)});`)}
  for (; i < k; i++) {
${lines(rows, (m) => `    const x${m} = load<f32>(a + ${m} * row);`)}
${each((m, j) => `    s${m}_${j} += x${m} * load<f32>(b${j});`)}
    a += 4;
${lines(columns, (j) => `    b${j} += 4;`)}
  }
${each((m, j) => `  store<f32>(c + ${m} * ldc + ((<usize>least(${j}, last)) << 2), s${m}_${j});`)}
}`;
};

export const microKernels = () =>
  [
    "import { laneSum, least, madd } from './lanes';",
    ...[1, 2, 3, 4, 5, 6].map(tile),
    ...[1, 2, 3, 4].flatMap((rows) => [spread(rows), dots(rows)]),
  ].join('\n');
