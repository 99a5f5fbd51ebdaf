import { FormatError, type Range } from '@niwaki/tensor';

/**
 * Reads bytes of a tensor whose rows are interleaved within each head in the file, in Hugging Face's order. Row 2j + p of
 * a head in the file is row p·d/2 + j of that head. Whole rows move, so packed blocks stay as they are.
 * @param read bytes [from, to) of the tensor as it lies in the file
 */
export async function readUnpermuted(
  { name, rows, bytes, heads }: { name: string; rows: number; bytes: number; heads: number },
  [from, to]: Range,
  read: (from: number, to: number) => Promise<Uint8Array>,
): Promise<Uint8Array> {
  const perHead = rows / heads;
  if (!Number.isInteger(perHead) || perHead % 2 !== 0) {
    throw new FormatError(`tensor '${name}' has ${rows} rows, which are not ${heads} heads of an even size`, { tensor: name, rows, heads });
  }
  if (to === from) return new Uint8Array(0);
  const rowBytes = bytes / rows;
  const headBytes = rowBytes * perHead;
  const first = Math.floor(from / headBytes);
  const last = Math.ceil(to / headBytes);
  const stored = await read(first * headBytes, last * headBytes);
  const ordered = new Uint8Array(stored.byteLength);
  for (let head = 0; head < last - first; head++) {
    for (let row = 0; row < perHead; row++) {
      const source = (head * perHead + storedRow(row, perHead)) * rowBytes;
      ordered.set(stored.subarray(source, source + rowBytes), (head * perHead + row) * rowBytes);
    }
  }
  return ordered.subarray(from - first * headBytes, to - first * headBytes);
}

/** Where the file keeps a row of a head: halves become neighbors. */
export const storedRow = (row: number, perHead: number): number => {
  const half = perHead / 2;
  return row < half ? 2 * row : 2 * (row - half) + 1;
};
