import { packBits, ShapeError, unpackBits, type Parameter } from '@niwaki/tensor';

/** One bit an entry of a matrix, row after row, lowest first: 1 where the entry is kept. */
export const packMask = (kept: ArrayLike<number>): Uint8Array => packBits(kept, { bits: 1 });

/** The mask of a weight, one byte an entry, 1 where kept; undefined where the weight has none. Reads back. */
export async function maskOf(weight: { readonly parts: Readonly<Record<string, Parameter>> }): Promise<Uint8Array | undefined> {
  const mask = weight.parts['mask'];
  if (mask === undefined) return undefined;
  const { bytes } = await mask.raw();
  const count = mask.shape.reduce((product, side) => product * side, 1);
  return Uint8Array.from(unpackBits(bytes, count, { bits: 1 }));
}

/** Whether zeros of a weight are part of how it is stored: written into it again, a matrix loses what it holds there. */
export const isSparse = ({ kind }: { readonly kind: string }): boolean => ['masked', 'n-of-m', 'csr'].includes(kind);

export function expectMask(path: string, [out, width]: readonly [number, number], mask: Uint8Array): void {
  const expected = Math.ceil((out * width) / 8);
  if (mask.length === expected) return;
  throw new ShapeError(`the mask of '${path}' [${out}, ${width}] takes ${expected} bytes, got ${mask.length}`, {
    path,
    expected,
    given: mask.length,
  });
}
