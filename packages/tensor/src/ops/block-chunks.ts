/** Entries worked on at once by the references of blockwise ops: about 25 f32 tensors of this size are alive together. */
const chunkEntries = 2 ** 18;

/** Stretches of whole blocks. */
export function blockChunks(length: number, blockSize: number): { from: number; count: number }[] {
  const step = Math.max(1, Math.floor(chunkEntries / blockSize)) * blockSize;
  return Array.from({ length: Math.ceil(length / step) }, (_, i) => ({ from: i * step, count: Math.min(step, length - i * step) }));
}
