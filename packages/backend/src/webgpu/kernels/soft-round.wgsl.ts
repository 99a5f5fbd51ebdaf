import { lanes, program, reduction, type Program } from '../program.ts';

/** Threads of a workgroup that sums one group: most groups are of 32 to 128. */
export const groupLanes = 64;

/** The exponential stays finite, since WGSL lets a compiler assume that there is no infinity. */
const standing = `
fn gateAt(place: f32, logit: f32) -> f32 {
  let fraction = clamp(place - floor(place), 1e-4, 1.0 - 1e-4);
  let start = fraction + 0.1;
  return start / (start + (1.1 - fraction) * exp(-clamp(logit, -80.0, 80.0)));
}
fn upOf(gate: f32) -> f32 { return clamp(gate * 1.2 - 0.1, 0.0, 1.0); }
fn slopeOf(gate: f32, up: f32) -> f32 { return select(0.0, gate * (1.0 - gate) * 1.2, up > 0.0 && up < 1.0); }`;

/** pow of 0 goes through its logarithm. */
const power = `
fn power(c: f32, exponent: f32) -> f32 { return select(pow(max(abs(c), 1e-30), exponent), 0.0, abs(c) < 1e-30); }`;

/** y = s · (clamp(⌊w/s⌋ + h + zero, 0, most) - zero), an entry a thread. */
export const softRoundForward: Program<'w' | 'logits' | 'scales' | 'zeros', 'y', 'count' | 'groupSize' | 'most'> = program({
  key: 'soft-round',
  inputs: { w: 'f32', logits: 'f32', scales: 'f32', zeros: 'f32' },
  outputs: { y: 'f32' },
  uniforms: { count: 'u32', groupSize: 'u32', most: 'f32' },
  workgroup: lanes,
  declarations: standing,
  main: `
  if (index >= u.count) { return; }
  let owner = index / u.groupSize;
  let place = w[index] / scales[owner];
  let level = floor(place) + zeros[owner] + upOf(gateAt(place, logits[index]));
  y[index] = scales[owner] * (clamp(level, 0.0, u.most) - zeros[owner]);`,
});

/** One workgroup a group: its dscale, and dlogits of its entries. */
export const softRoundBackward: Program<'dy' | 'w' | 'logits' | 'scales' | 'zeros', 'dscales' | 'dlogits', 'count' | 'groupSize' | 'most'> =
  program({
    key: 'soft-round-grad',
    inputs: { dy: 'f32', w: 'f32', logits: 'f32', scales: 'f32', zeros: 'f32' },
    outputs: { dscales: 'f32', dlogits: 'f32' },
    uniforms: { count: 'u32', groupSize: 'u32', most: 'f32' },
    workgroup: groupLanes,
    declarations: standing + reduction('sumOf', 'a + b'),
    main: `
  if (groupIndex >= u.count) { return; }
  let scale = scales[groupIndex];
  let zero = zeros[groupIndex];
  var sum = 0.0;
  for (var i = lane; i < u.groupSize; i += LANES) {
    let at = groupIndex * u.groupSize + i;
    let place = w[at] / scale;
    let gate = gateAt(place, logits[at]);
    let up = upOf(gate);
    let level = floor(place) + zero + up;
    let inside = level >= 0.0 && level <= u.most;
    sum += dy[at] * (clamp(level, 0.0, u.most) - zero - select(0.0, place, inside));
    dlogits[at] = select(0.0, dy[at] * scale * slopeOf(gate, up), inside);
  }
  let total = sumOf(sum, lane);
  if (lane == 0u) { dscales[groupIndex] = total; }`,
  });

/** One workgroup a group: the sum of 1 - |2h - 1|^sharpness. */
export const undecidedForward: Program<'w' | 'logits' | 'scales', 'y', 'count' | 'groupSize' | 'sharpness'> = program({
  key: 'undecided',
  inputs: { w: 'f32', logits: 'f32', scales: 'f32' },
  outputs: { y: 'f32' },
  uniforms: { count: 'u32', groupSize: 'u32', sharpness: 'f32' },
  workgroup: groupLanes,
  declarations: standing + power + reduction('sumOf', 'a + b'),
  main: `
  if (groupIndex >= u.count) { return; }
  var sum = 0.0;
  for (var i = lane; i < u.groupSize; i += LANES) {
    let at = groupIndex * u.groupSize + i;
    let up = upOf(gateAt(w[at] / scales[groupIndex], logits[at]));
    sum += 1.0 - power(2.0 * up - 1.0, u.sharpness);
  }
  let total = sumOf(sum, lane);
  if (lane == 0u) { y[groupIndex] = total; }`,
});

/** dlogits, an entry a thread. */
export const undecidedBackward: Program<'dy' | 'w' | 'logits' | 'scales', 'dlogits', 'count' | 'groupSize' | 'sharpness'> = program({
  key: 'undecided-grad',
  inputs: { dy: 'f32', w: 'f32', logits: 'f32', scales: 'f32' },
  outputs: { dlogits: 'f32' },
  uniforms: { count: 'u32', groupSize: 'u32', sharpness: 'f32' },
  workgroup: lanes,
  declarations: standing + power,
  main: `
  if (index >= u.count) { return; }
  let owner = index / u.groupSize;
  let gate = gateAt(w[index] / scales[owner], logits[index]);
  let up = upOf(gate);
  let c = 2.0 * up - 1.0;
  dlogits[index] = -2.0 * u.sharpness * power(c, u.sharpness - 1.0) * sign(c) * slopeOf(gate, up) * dy[owner];`,
});
