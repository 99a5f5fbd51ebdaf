import { program, type Program } from '../program.ts';
import { acrossTerms, alongTerms, side, tileDeclarations, tiledProduct, tilesKey, type Tiles } from './tiles.wgsl.ts';

export interface MatMulVariant {
  readonly transposeA: boolean;
  readonly transposeB: boolean;
  readonly tiles: Tiles;
  /** The product is added to what y holds, or to another matrix, `sum`. */
  readonly onto?: 'y' | 'sum';
}

export type MatMulUniform = 'rows' | 'columns' | 'terms' | 'inner' | 'aOuter' | 'aInner' | 'bOuter' | 'bInner';

/**
 * y = a·b over batches (z), with two broadcast batch sides: batch z is (z / inner, z % inner), and steps of 0 repeat an
 * operand. The staging walks each operand along its memory, so that a transposition costs nothing.
 */
export function matMulProgram({ transposeA, transposeB, tiles, onto }: MatMulVariant): Program<string, 'y', MatMulUniform> {
  return program<string, 'y', MatMulUniform>({
    key: `mat-mul-${transposeA ? 'T' : 'N'}${transposeB ? 'T' : 'N'}-${tilesKey(tiles)}${onto === undefined ? '' : `-onto-${onto}`}`,
    inputs: onto === 'sum' ? { a: 'f32', b: 'f32', sum: 'f32' } : { a: 'f32', b: 'f32' },
    outputs: { y: 'f32' },
    uniforms: { rows: 'u32', columns: 'u32', terms: 'u32', inner: 'u32', aOuter: 'u32', aInner: 'u32', bOuter: 'u32', bInner: 'u32' },
    workgroup: [side, side],
    declarations: () => tileDeclarations(tiles),
    main: () => `
  let outer = group.z / u.inner;
  let within = group.z % u.inner;
  let aStart = outer * u.aOuter + within * u.aInner;
  let bStart = outer * u.bOuter + within * u.bInner;
  let yStart = group.z * u.rows * u.columns;
${tiledProduct({ tiles, stage: denseStage({ transposeA, transposeB, starts: { a: 'aStart + ', b: 'bStart + ' } }), rows: 'u.rows', columns: 'u.columns', terms: 'u.terms', target: 'yStart + row * u.columns + column', ...(onto && { onto }) })}`,
  });
}

/** Statements that stage rows of `a` and columns of `b` for `tiledProduct`. @param starts WGSL: what is added to an operand's indices */
export function denseStage({
  transposeA,
  transposeB,
  starts = { a: '', b: '' },
}: Pick<MatMulVariant, 'transposeA' | 'transposeB'> & { readonly starts?: Readonly<Record<'a' | 'b', string>> }): string {
  const ofA = (transposeA ? acrossTerms : alongTerms)('ROWS');
  const ofB = (transposeB ? alongTerms : acrossTerms)('COLUMNS');
  return `
    for (var i = lane; i < ROWS * DEPTH; i += LANES) {
      let row = row0 + ${ofA.line};
      let k = k0 + ${ofA.term};
      var value = 0.0;
      if (row < u.rows && k < u.terms) { value = a[${starts.a}${transposeA ? 'k * u.rows + row' : 'row * u.terms + k'}]; }
      putA(k - k0, row - row0, value);
    }
    for (var i = lane; i < COLUMNS * DEPTH; i += LANES) {
      let column = column0 + ${ofB.line};
      let k = k0 + ${ofB.term};
      var value = 0.0;
      if (column < u.columns && k < u.terms) { value = b[${starts.b}${transposeB ? 'column * u.terms + k' : 'k * u.columns + column'}]; }
      putB(k - k0, column - column0, value);
    }`;
}
