import { program, type Program } from '../program.ts';
import type { MatMulUniform } from './mat-mul.wgsl.ts';

/** Rows of a that these products take. */
export const mostVectorRows = 4;

/** Columns of a workgroup where b is not transposed, and the strips of terms that its threads share out. */
export const vectorColumns = 32;
const strips = 8;

/** Columns of a workgroup where each lies along its memory, and the threads that share out one. */
export const dotColumns = 4;
export const dotLanes = 32;

/** The type that carries one sum a row, and how to build it and take it apart: no lane is wasted on a single row. */
export interface RowVector {
  readonly type: string;
  of(entry: (row: number) => string): string;
  at(vector: string, row: string): string;
}

export function rowVector(rows: number): RowVector {
  if (rows === 1) return { type: 'f32', of: (entry) => entry(0), at: (vector) => vector };
  const size = rows === 2 ? 2 : 4;
  return {
    type: `vec${size}<f32>`,
    of: (entry) => `vec${size}<f32>(${Array.from({ length: size }, (_, row) => (row < rows ? entry(row) : '0.0')).join(', ')})`,
    at: (vector, row) => `${vector}[${row}]`,
  };
}

export interface MatVecVariant {
  readonly rows: number;
  readonly transposeA: boolean;
  readonly transposeB: boolean;
  /** Terms are a multiple of four: where both operands lie along them, they are read four at a time. */
  readonly quads: boolean;
}

/**
 * y = a·b for a few rows of a, as in generation: every entry of b is read once, and along its memory. One barrier a
 * workgroup: a few threads a column, whose sums the first ones of them add up.
 */
export function matVecProgram({ rows, transposeA, transposeB, quads }: MatVecVariant): Program<'a' | 'b', 'y', MatMulUniform> {
  const vector = rowVector(rows);
  const entries = vector.of((row) => (transposeA ? `a[aStart + k * ${rows}u + ${row}u]` : `a[aStart + ${row}u * u.terms + k]`));
  const starts = `
  let outer = group.z / u.inner;
  let within = group.z % u.inner;
  let aStart = outer * u.aOuter + within * u.aInner;
  let bStart = outer * u.bOuter + within * u.bInner;
  let yStart = group.z * u.rows * u.columns;
  var sums = ${vector.type}(0.0);`;
  const add = (at: string): string => `sums = fma(${vector.type}(b[${at}]), ${entries}, sums);`;
  const header = {
    key: `mat-vec-${transposeA ? 'T' : 'N'}${transposeB ? 'T' : 'N'}-${rows}`,
    inputs: { a: 'f32', b: 'f32' },
    outputs: { y: 'f32' },
    uniforms: { rows: 'u32', columns: 'u32', terms: 'u32', inner: 'u32', aOuter: 'u32', aInner: 'u32', bOuter: 'u32', bInner: 'u32' },
  } as const;
  if (transposeB) {
    const inFours = quads && !transposeA;
    const dots = vector.of((row) => `dot(word, a[aStart / 4u + (${row}u * u.terms) / 4u + k])`);
    const each = inFours
      ? `
    let line = (bStart + column * u.terms) / 4u;
    for (var k = local.x; k < u.terms / 4u; k += ${dotLanes}u) {
      let word = b[line + k];
      sums += ${dots};
    }`
      : `
    for (var k = local.x; k < u.terms; k += ${dotLanes}u) { ${add('bStart + column * u.terms + k')} }`;
    return program({
      ...header,
      ...(inFours && { key: `${header.key}-quads`, inputs: { a: 'vec4<f32>', b: 'vec4<f32>' } as const }),
      workgroup: [dotLanes, dotColumns],
      declarations: `var<workgroup> partial: array<${vector.type}, LANES>;`,
      main: `${starts}
  let column = (group.y * groups.x + group.x) * ${dotColumns}u + local.y;
  if (column < u.columns) {${each}
  }
${addLanes(vector, 'yStart + local.x * u.columns + column')}`,
    });
  }
  return program({
    ...header,
    workgroup: [vectorColumns, strips],
    declarations: `var<workgroup> partial: array<${vector.type}, LANES>;`,
    main: `${starts}
  let column = (group.y * groups.x + group.x) * ${vectorColumns}u + local.x;
  if (column < u.columns) {
    for (var k = local.y; k < u.terms; k += ${strips}u) { ${add('bStart + k * u.columns + column')} }
  }
  partial[lane] = sums;
  workgroupBarrier();
  if (local.y < u.rows && column < u.columns) {
    var total = 0.0;
    for (var strip = 0u; strip < ${strips}u; strip++) { total += ${vector.at(`partial[strip * ${vectorColumns}u + local.x]`, 'local.y')}; }
    y[yStart + local.y * u.columns + column] = total;
  }`,
  });
}

/** The end of a product by dots: `sums` of a column's threads are added, one row of the result a thread. */
const addLanes = (vector: RowVector, target: string): string => `
  partial[lane] = sums;
  workgroupBarrier();
  if (local.x < u.rows && column < u.columns) {
    var total = 0.0;
    for (var i = 0u; i < ${dotLanes}u; i++) { total += ${vector.at(`partial[local.y * ${dotLanes}u + i]`, 'local.x')}; }
    y[${target}] = total;
  }`;
