import { program, reduction, type Program } from '../program.ts';
import { philox } from './noise.wgsl.ts';

type Uniform = 'seedLow' | 'seedHigh' | 'step' | 'id' | 'purpose' | 'stochastic' | 'count' | 'groups' | 'groupSize' | 'shrink' | 'least';

/** A workgroup takes the four groups whose zeros share a word; a lane takes words of four codes, which share a block of draws. */
export const updateGroups: Program<'codes' | 'scales' | 'zeros' | 'update', 'newCodes' | 'newScales' | 'newZeros', Uniform> = program({
  key: 'update-groups',
  inputs: { codes: 'u32', scales: 'f32', zeros: 'u32', update: 'f32' },
  outputs: { newCodes: 'u32', newScales: 'f32', newZeros: 'u32' },
  uniforms: {
    seedLow: 'u32',
    seedHigh: 'u32',
    step: 'u32',
    id: 'u32',
    purpose: 'u32',
    stochastic: 'u32',
    count: 'u32',
    groups: 'u32',
    groupSize: 'u32',
    shrink: 'f32',
    least: 'f32',
  },
  workgroup: 64,
  declarations: `${philox}
${reduction('lowest', 'min(a, b)')}
${reduction('highest', 'max(a, b)')}
fn valueAt(i: u32, scale: f32, zero: f32) -> f32 {
  let code = f32((codes[i / 4u] >> (8u * (i % 4u))) & 255u);
  return (code - zero) * scale * u.shrink + update[i];
}`,
  main: `
  if (groupIndex * 4u >= u.groups) { return; }
  var zeroWord = 0u;
  for (var k = 0u; k < 4u && groupIndex * 4u + k < u.groups; k++) {
    let own = groupIndex * 4u + k;
    let start = own * u.groupSize;
    let end = min(u.count, start + u.groupSize);
    let oldScale = scales[own];
    let oldZero = f32((zeros[groupIndex] >> (8u * k)) & 255u);
    var low = 0.0;
    var high = 0.0;
    for (var i = start + lane; i < end; i += LANES) {
      let value = valueAt(i, oldScale, oldZero);
      low = min(low, value);
      high = max(high, value);
    }
    low = lowest(low, lane);
    high = highest(high, lane);
    let scale = max(high - low, u.least) / 255.0;
    let zero = clamp(round(-low / scale), 0.0, 255.0);
    zeroWord |= u32(zero) << (8u * k);
    if (lane == 0u) { newScales[own] = scale; }
    for (var w = start / 4u + lane; w * 4u < end; w += LANES) {
      let draws = philox(w) >> vec4<u32>(8u);
      var word = 0u;
      for (var b = 0u; b < 4u && w * 4u + b < end; b++) {
        let quotient = valueAt(w * 4u + b, oldScale, oldZero) / scale;
        let below = floor(quotient);
        let chance = below + select(0.0, 1.0, f32(draws[b]) * (1.0 / 16777216.0) < quotient - below);
        let rounded = select(round(quotient), chance, u.stochastic == 1u);
        word |= u32(clamp(rounded + zero, 0.0, 255.0)) << (8u * b);
      }
      newCodes[w] = word;
    }
  }
  if (lane == 0u) { newZeros[groupIndex] = zeroWord; }`,
});
