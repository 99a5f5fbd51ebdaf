/**
 * GPU buffers by size and use, in the place of tfjs's own pool, which finds a buffer by searching a list of all alike and
 * keeps every size that was ever needed. Its members have the names and meanings that tfjs calls.
 */
export interface BufferPool {
  /** Bytes that tensors hold, and bytes taken from the device, kept ones included. */
  readonly numBytesUsed: number;
  readonly numBytesAllocated: number;
  /** A buffer, a kept one where `reuse` allows; `mappedAtCreation` holds for a new one only. */
  acquireBuffer(size: number, usage: GPUBufferUsageFlags, mappedAtCreation?: boolean, reuse?: boolean): GPUBuffer;
  /** Takes back a buffer. Commands run in their order, so that the next owner's may be recorded before this one's were submitted. */
  releaseBuffer(buffer: GPUBuffer, reuse?: boolean): void;
  /** Destroys buffers that are kept for nothing; right after commands were submitted, since those not yet submitted may name them. */
  trim(): void;
  getNumUsedBuffers(): number;
  getNumFreeBuffers(): number;
  dispose(): void;
}

/**
 * Bytes that may be taken from the device: half as many again as were ever in use at a time, since sizes differ from step to
 * step. A new buffer is cleared by the device, so that one which is needed again is worth keeping.
 */
const most = (peak: number): number => 1.5 * peak + 64 * 2 ** 20;

interface Pooled {
  readonly buffer: GPUBuffer;
  readonly list: Kept;
  /** Counts buffers as they are made. */
  readonly age: number;
}

interface Kept {
  readonly size: number;
  /** Youngest first. The oldest is given out first, so that steps that are alike get the same buffers again. */
  readonly free: Pooled[];
  /** When one was last asked for, in calls of acquireBuffer. */
  asked: number;
}

export function createBufferPool(device: GPUDevice): BufferPool {
  const lists = new Map<number, Kept>();
  const used = new Map<GPUBuffer, Pooled>();
  let [bytesUsed, bytesAllocated, peak, calls, made, free] = [0, 0, 0, 0, 0, 0];

  // Uses are flags of 10 bits.
  const listOf = (size: number, usage: number): Kept => {
    const key = size * 1024 + usage;
    let list = lists.get(key);
    if (list === undefined) lists.set(key, (list = { size, free: [], asked: calls }));
    return list;
  };
  const destroy = ({ buffer, list }: Pooled): void => {
    buffer.destroy();
    bytesAllocated -= list.size;
  };
  /** Sizes that nobody has asked for longest go first. */
  const trim = (): void => {
    if (bytesAllocated <= most(peak)) return;
    for (const [key, list] of [...lists].sort(([, a], [, b]) => a.asked - b.asked)) {
      if (bytesAllocated <= most(peak)) return;
      list.free.forEach(destroy);
      free -= list.free.length;
      list.free.length = 0;
      lists.delete(key);
    }
  };

  return {
    get numBytesUsed() {
      return bytesUsed;
    },
    get numBytesAllocated() {
      return bytesAllocated;
    },
    acquireBuffer: (size, usage, mappedAtCreation = false, reuse = true) => {
      calls++;
      const list = listOf(size, usage);
      list.asked = calls;
      let pooled = reuse ? list.free.pop() : undefined;
      if (pooled === undefined) {
        pooled = { buffer: device.createBuffer({ size, usage, mappedAtCreation }), list, age: made++ };
        bytesAllocated += size;
      } else {
        free--;
      }
      used.set(pooled.buffer, pooled);
      bytesUsed += size;
      peak = Math.max(peak, bytesUsed);
      return pooled.buffer;
    },
    releaseBuffer: (buffer, reuse = true) => {
      const pooled = used.get(buffer);
      if (pooled === undefined) return;
      used.delete(buffer);
      bytesUsed -= pooled.list.size;
      if (!reuse) return destroy(pooled);
      insert(pooled.list.free, pooled);
      free++;
    },
    trim,
    getNumUsedBuffers: () => used.size,
    getNumFreeBuffers: () => free,
    dispose: () => {
      for (const list of lists.values()) list.free.forEach(destroy);
      used.forEach(destroy);
      lists.clear();
      used.clear();
      bytesUsed = peak = free = 0;
    },
  };
}

/** Puts a buffer where its age belongs, the youngest first. */
function insert(sorted: Pooled[], pooled: Pooled): void {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle]!.age > pooled.age) low = middle + 1;
    else high = middle;
  }
  sorted.splice(low, 0, pooled);
}
