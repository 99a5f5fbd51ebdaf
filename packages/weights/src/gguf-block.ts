import { ConfigError, denseParameter, ggufBlocks, packBytes, type GgufFormat, type PackedShape } from '@niwaki/tensor';
import { encodeGgufBlocks, ggufRowBytes, isGgufEncoded } from './encode-gguf.ts';
import { expectLength, packedReads } from './packed.ts';
import { rowsOfTensor } from './rows.ts';
import type { Weight } from './weight.ts';

/**
 * A matrix in GGUF blocks, bytes as in the file; F16 and BF16 are blocks of one entry, so half-precision checkpoints stay
 * in two bytes an entry. One part, `weight`.
 * @param path module path: the part is named `path.weight`
 * @param shape [out, in], rows first (a GGUF file lists its dimensions the other way around)
 * @param blocks whole rows of blocks, one after another
 */
export function ggufBlock(path: string, shape: readonly [number, number], format: GgufFormat, blocks: Uint8Array): Weight {
  const [out, width] = shape;
  const name = `${path}.weight`;
  const rowBytes = ggufRowBytes(format, width, name);
  expectLength(name, blocks, out * rowBytes);
  const packed: PackedShape = { format, out, in: width, blockSize: ggufBlocks[format].elements };
  const stored = denseParameter(name, packBytes(blocks), {
    role: 'codes',
    shape,
    file: { dtype: format, shape, bytes: blocks.length },
  });
  return {
    kind: 'gguf',
    options: { format },
    shape,
    parts: { weight: stored },
    ...packedReads(packed, { blocks: stored }),
    ...(isGgufEncoded(format)
      ? {
          encode: async (dense, target) => {
            const to = [dense.shape[0], dense.shape[1]] as const;
            return ggufBlock(target, to, format, await encodeGgufBlocks(`${target}.weight`, to, rowsOfTensor(dense), format));
          },
        }
      : {}),
    take: async (rows, target) => {
      const { bytes } = await stored.raw();
      const taken = new Uint8Array(rows.length * rowBytes);
      for (const [i, row] of rows.entries()) {
        if (!(row >= 0 && row < out))
          throw new ConfigError(`row ${row} is not in '${name}' of ${out} rows`, { path: name, row, rows: out });
        taken.set(bytes.subarray(row * rowBytes, (row + 1) * rowBytes), i * rowBytes);
      }
      return ggufBlock(target, [rows.length, width], format, taken);
    },
  };
}
