/** Types of the format, narrowest first: the writer puts the last of this list first, so that everything is aligned. */
const ranked = [
  ['BOOL', 8],
  ['F4', 4],
  ['F6_E2M3', 6],
  ['F6_E3M2', 6],
  ['U8', 8],
  ['I8', 8],
  ['F8_E5M2', 8],
  ['F8_E4M3', 8],
  ['F8_E8M0', 8],
  ['F8_E4M3FNUZ', 8],
  ['F8_E5M2FNUZ', 8],
  ['I16', 16],
  ['U16', 16],
  ['F16', 16],
  ['BF16', 16],
  ['I32', 32],
  ['U32', 32],
  ['F32', 32],
  ['C64', 64],
  ['F64', 64],
  ['I64', 64],
  ['U64', 64],
] as const;

export type SafetensorsDtype = (typeof ranked)[number][0];

/** Bits of one element, by the format's own name of the type. */
export const dtypeBits: ReadonlyMap<string, number> = new Map(ranked);

/** Order of writing: higher first. */
export const dtypeRank: ReadonlyMap<string, number> = new Map(ranked.map(([name], rank) => [name, rank]));

/** Bits of a whole tensor; undefined where they pass 2^53, which no file can hold. */
export function tensorBits(shape: readonly number[], bits: number): number | undefined {
  let total = bits;
  for (const side of shape) {
    total *= side;
    if (!Number.isSafeInteger(total)) return undefined;
  }
  return total;
}
