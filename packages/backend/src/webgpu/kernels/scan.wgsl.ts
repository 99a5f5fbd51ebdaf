import { program, type Program, type Scalar } from '../program.ts';

export interface Scan {
  readonly combine: 'sum' | 'product';
  readonly type: Scalar;
  readonly exclusive: boolean;
  readonly reverse: boolean;
}

/** One workgroup a line along the axis; it scans as many entries as it has threads at a time and carries the rest over. */
export function scanProgram({ combine, type, exclusive, reverse }: Scan): Program<'x', 'y', 'lines' | 'length' | 'inner'> {
  const operator = combine === 'sum' ? '+' : '*';
  const neutral = `${type}(${combine === 'sum' ? 0 : 1})`;
  return program({
    key: `scan-${combine}-${type}${exclusive ? '-exclusive' : ''}${reverse ? '-reverse' : ''}`,
    inputs: { x: type },
    outputs: { y: type },
    uniforms: { lines: 'u32', length: 'u32', inner: 'u32' },
    workgroup: 128,
    declarations: `var<workgroup> part: array<${type}, LANES>;`,
    main: `
  if (groupIndex >= u.lines) { return; }
  let base = groupIndex / u.inner * u.length * u.inner + groupIndex % u.inner;
  var carried = ${neutral};
  for (var start = 0u; start < u.length; start += LANES) {
    let place = start + lane;
    let at = base + ${reverse ? '(u.length - 1u - min(place, u.length - 1u))' : 'place'} * u.inner;
    var mine = ${neutral};
    if (place < u.length) { mine = x[at]; }
    part[lane] = mine;
    for (var reach = 1u; reach < LANES; reach *= 2u) {
      workgroupBarrier();
      var before = ${neutral};
      if (lane >= reach) { before = part[lane - reach]; }
      workgroupBarrier();
      part[lane] = before ${operator} part[lane];
    }
    workgroupBarrier();
    var scanned = carried${exclusive ? '' : ` ${operator} part[lane]`};
    ${exclusive ? `if (lane > 0u) { scanned = carried ${operator} part[lane - 1u]; }` : ''}
    if (place < u.length) { y[at] = scanned; }
    carried = carried ${operator} workgroupUniformLoad(&part[LANES - 1u]);
  }`,
  });
}
