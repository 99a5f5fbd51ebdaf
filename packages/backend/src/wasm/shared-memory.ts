/** The memory section of a wasm binary, and its one memory's flags. */
const memorySection = 5;
const bounded = 1;
const boundedAndShared = 3;

/**
 * A copy of tfjs's SIMD binary whose heap is a SharedArrayBuffer, so that workers can compute on the very tensors: the
 * binary declares one memory with a maximum, and one byte says that it is not shared.
 * @returns undefined where the bytes are not what we know (another version of tfjs): the heap must then stay unshared
 */
export function withSharedMemory(binary: Uint8Array): Uint8Array | undefined {
  const bytes = binary.slice();
  let at = 8;
  const readLength = (): number => {
    let value = 0;
    for (let shift = 0; shift < 35; shift += 7) {
      const byte = bytes[at++] ?? 0;
      value |= (byte & 127) << shift;
      if ((byte & 128) === 0) break;
    }
    return value >>> 0;
  };
  while (at < bytes.length) {
    const section = bytes[at++];
    const length = readLength();
    if (section !== memorySection) {
      at += length;
      continue;
    }
    const memories = readLength();
    if (memories !== 1 || bytes[at] !== bounded) return undefined;
    bytes[at] = boundedAndShared;
    return bytes;
  }
  return undefined;
}
