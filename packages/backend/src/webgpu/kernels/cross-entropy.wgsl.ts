import { lanes, program, reduction, type Program } from '../program.ts';

/** One workgroup a row: its log-sum-exp, and the loss of its target (0 where the target is negative). */
export const crossEntropyForward: Program<'logits' | 'targets', 'loss' | 'logSumExp', 'rows' | 'vocabulary'> = program({
  key: 'cross-entropy',
  inputs: { logits: 'f32', targets: 'i32' },
  outputs: { loss: 'f32', logSumExp: 'f32' },
  uniforms: { rows: 'u32', vocabulary: 'u32' },
  workgroup: 256,
  declarations: reduction('highest', 'max(a, b)') + reduction('sumOf', 'a + b'),
  main: `
  if (groupIndex >= u.rows) { return; }
  let row = groupIndex * u.vocabulary;
  var mine = -3.4028234e38;
  for (var i = lane; i < u.vocabulary; i += LANES) { mine = max(mine, logits[row + i]); }
  let peak = highest(mine, lane);
  var total = 0.0;
  for (var i = lane; i < u.vocabulary; i += LANES) { total += exp(logits[row + i] - peak); }
  let whole = peak + log(sumOf(total, lane));
  if (lane == 0u) {
    let wanted = targets[groupIndex];
    logSumExp[groupIndex] = whole;
    loss[groupIndex] = 0.0;
    if (wanted >= 0 && u32(wanted) < u.vocabulary) { loss[groupIndex] = whole - logits[row + u32(wanted)]; }
  }`,
});

/** One thread a logit: dloss · (softmax - one-hot), from another tensor's logits or over them. */
const gradient = (from: 'logits' | 'dlogits'): string => `
  if (index >= u.count) { return; }
  let row = index / u.vocabulary;
  let wanted = targets[row];
  var slope = 0.0;
  if (wanted >= 0) {
    slope = exp(${from}[index] - logSumExp[row]);
    if (u32(wanted) == index - row * u.vocabulary) { slope -= 1.0; }
  }
  dlogits[index] = dloss[row] * slope;`;

const rowInputs = { dloss: 'f32', targets: 'i32', logSumExp: 'f32' } as const;
const gradientSides = {
  outputs: { dlogits: 'f32' },
  uniforms: { count: 'u32', vocabulary: 'u32' },
  workgroup: lanes,
} as const;

export const crossEntropyBackward: Program<'dloss' | 'logits' | 'targets' | 'logSumExp', 'dlogits', 'count' | 'vocabulary'> = program({
  key: 'cross-entropy-grad',
  inputs: { ...rowInputs, logits: 'f32' },
  ...gradientSides,
  main: gradient('logits'),
});

/** The same where `dlogits` holds the logits before. */
export const crossEntropyBackwardOver: Program<'dloss' | 'targets' | 'logSumExp', 'dlogits', 'count' | 'vocabulary'> = program({
  key: 'cross-entropy-grad-over',
  inputs: rowInputs,
  ...gradientSides,
  main: gradient('dlogits'),
});
