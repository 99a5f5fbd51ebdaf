import { program, reduction, type Program } from '../program.ts';

const lanes = 128;
const sumOf = reduction('sumOf', 'a + b');

/** `mean` and `scale`, 1 / sqrt(variance + eps), of the workgroup's row. From the differences: the mean of squares less the square of the mean loses digits. */
const statistics = `
  if (groupIndex >= u.rows) { return; }
  let row = groupIndex * u.width;
  var total = 0.0;
  for (var i = lane; i < u.width; i += LANES) { total += x[row + i]; }
  let mean = sumOf(total, lane) / f32(u.width);
  var squares = 0.0;
  for (var i = lane; i < u.width; i += LANES) {
    let difference = x[row + i] - mean;
    squares += difference * difference;
  }
  let scale = inverseSqrt(sumOf(squares, lane) / f32(u.width) + u.eps);`;

/** One workgroup a row: y = (x - mean) / sqrt(variance + eps) · weight + bias. */
export const layerNormForward: Program<'x' | 'weight' | 'bias', 'y', 'rows' | 'width' | 'eps'> = program({
  key: 'layer-norm',
  inputs: { x: 'f32', weight: 'f32', bias: 'f32' },
  outputs: { y: 'f32' },
  uniforms: { rows: 'u32', width: 'u32', eps: 'f32' },
  workgroup: lanes,
  declarations: sumOf,
  main: `${statistics}
  for (var i = lane; i < u.width; i += LANES) { y[row + i] = (x[row + i] - mean) * scale * weight[i] + bias[i]; }`,
});

/** One workgroup a row: dx, and the row's mean and scale, which the gradients of weight and bias need again. */
export const layerNormBackward: Program<'dy' | 'x' | 'weight', 'dx' | 'statistics', 'rows' | 'width' | 'eps'> = program({
  key: 'layer-norm-grad',
  inputs: { dy: 'f32', x: 'f32', weight: 'f32' },
  outputs: { dx: 'f32', statistics: 'f32' },
  uniforms: { rows: 'u32', width: 'u32', eps: 'f32' },
  workgroup: lanes,
  declarations: sumOf,
  main: `${statistics}
  var sum = 0.0;
  var along = 0.0;
  for (var i = lane; i < u.width; i += LANES) {
    let scaled = dy[row + i] * weight[i];
    sum += scaled;
    along += scaled * ((x[row + i] - mean) * scale);
  }
  let meanSum = sumOf(sum, lane) / f32(u.width);
  let meanAlong = sumOf(along, lane) / f32(u.width);
  for (var i = lane; i < u.width; i += LANES) {
    dx[row + i] = scale * (dy[row + i] * weight[i] - meanSum - (x[row + i] - mean) * scale * meanAlong);
  }
  if (lane == 0u) {
    statistics[2u * groupIndex] = mean;
    statistics[2u * groupIndex + 1u] = scale;
  }`,
});

/** Columns and strips of rows that a workgroup sums at a time. */
export const weightColumns = 32;
const strips = 8;

/** dweight = Σ over rows of dy · (x - mean) · scale, dbias = Σ dy: each workgroup owns some columns, its strips of threads share out the rows. */
export const layerNormWeightGradient: Program<'dy' | 'x' | 'statistics', 'dweight' | 'dbias', 'rows' | 'width'> = program({
  key: 'layer-norm-weight-grad',
  inputs: { dy: 'f32', x: 'f32', statistics: 'f32' },
  outputs: { dweight: 'f32', dbias: 'f32' },
  uniforms: { rows: 'u32', width: 'u32' },
  workgroup: [weightColumns, strips],
  declarations: `var<workgroup> partial: array<vec2<f32>, LANES>;`,
  main: `
  let column = group.x * ${weightColumns}u + local.x;
  var sum = vec2<f32>();
  if (column < u.width) {
    for (var row = local.y; row < u.rows; row += ${strips}u) {
      let at = row * u.width + column;
      sum += dy[at] * vec2<f32>((x[at] - statistics[2u * row]) * statistics[2u * row + 1u], 1.0);
    }
  }
  partial[lane] = sum;
  workgroupBarrier();
  if (local.y == 0u && column < u.width) {
    for (var strip = 1u; strip < ${strips}u; strip++) { sum += partial[strip * ${weightColumns}u + local.x]; }
    dweight[column] = sum.x;
    dbias[column] = sum.y;
  }`,
});
