import { codeBuckets, codeSearch, dynamicMap } from '@niwaki/tensor';

/** How blocks are coded; see `quantizeBlocks`. */
export interface BlockCodeAttributes {
  readonly signed: boolean;
  readonly blockSize: number;
}

const { fround, sqrt } = Math;

/** Codes and scales of values, operation by operation as the op's reference rounds them. */
export function encodeBlocks(
  values: Float32Array,
  codes: Uint8Array,
  scales: Float32Array,
  { signed, blockSize, guard }: BlockCodeAttributes & { readonly guard: boolean },
): void {
  const { base, boundary } = codeSearch({ signed, guard });
  for (let block = 0; block < scales.length; block++) {
    const [from, to] = [block * blockSize, Math.min(values.length, (block + 1) * blockSize)];
    let scale = 0;
    for (let i = from; i < to; i++) scale = Math.max(scale, Math.abs(values[i]!));
    scales[block] = scale;
    const divisor = scale === 0 ? 1 : scale;
    for (let i = from; i < to; i++) {
      const value = values[i]!;
      const u = fround(Math.abs(value) / divisor);
      const bucket = Math.trunc(fround(fround(sqrt(fround(sqrt(fround(sqrt(u)))))) * codeBuckets)) | 0;
      const row = signed && value < 0 ? bucket + codeBuckets + 1 : bucket;
      const step = u > boundary[row]! ? 1 : 0;
      codes[i] = base[row]! + (signed && value < 0 ? -step : step);
    }
  }
  codes.fill(signed ? zeroCode : 0, values.length);
}

const zeroCode = 127;

/** The values that codes stand for. */
export function decodeBlocks(
  codes: Uint8Array,
  scales: Float32Array,
  values: Float32Array,
  { signed, blockSize }: BlockCodeAttributes,
): void {
  const map = dynamicMap({ signed });
  for (let block = 0; block < scales.length; block++) {
    const scale = scales[block]!;
    const to = Math.min(values.length, (block + 1) * blockSize);
    for (let i = block * blockSize; i < to; i++) values[i] = map[codes[i]!]! * scale;
  }
}
