import { expect, it } from 'vitest';
import { createBufferPool, type BufferPool } from '../src/webgpu/buffer-pool.ts';

interface Fake {
  readonly size: number;
  readonly number: number;
  destroyed: boolean;
  destroy(): void;
}

/** A pool over a device that only counts. */
function onFakeDevice(): {
  pool: BufferPool;
  made: Fake[];
  take(size: number, usage?: number): Fake;
  give(buffer: Fake, reuse?: boolean): void;
} {
  const made: Fake[] = [];
  const device = {
    createBuffer: ({ size }: GPUBufferDescriptor): Fake => {
      const buffer: Fake = { size, number: made.length, destroyed: false, destroy: () => void (buffer.destroyed = true) };
      made.push(buffer);
      return buffer;
    },
  };
  const pool = createBufferPool(device as unknown as GPUDevice);
  return {
    pool,
    made,
    take: (size, usage = 128) => pool.acquireBuffer(size, usage) as unknown as Fake,
    give: (buffer, reuse = true) => pool.releaseBuffer(buffer as unknown as GPUBuffer, reuse),
  };
}

const megabyte = 2 ** 20;

it('gives steps that are alike the same buffers, and makes none after the first', () => {
  const { take, give, made } = onFakeDevice();
  const step = (): number[] => {
    const taken = [16, 16, 64].map((size) => take(size));
    const numbers = taken.map(({ number }) => number);
    // Back in another order than they were taken.
    for (const buffer of [taken[1]!, taken[2]!, taken[0]!]) give(buffer);
    return numbers;
  };
  const first = step();
  for (let i = 0; i < 3; i++) expect(step()).toEqual(first);
  expect(made.length).toBe(3);
});

it('takes neither another size nor another use for the one that is asked for', () => {
  const { take, give, pool } = onFakeDevice();
  give(take(16));
  expect(take(20).number).toBe(1);
  expect(take(16, 64).number).toBe(2);
  expect(take(16).number).toBe(0);
  expect([pool.getNumUsedBuffers(), pool.getNumFreeBuffers()]).toEqual([3, 0]);
  expect([pool.numBytesUsed, pool.numBytesAllocated]).toEqual([52, 52]);
});

it('destroys a buffer at once that may not be used again, and takes nothing back twice', () => {
  const { take, give, pool } = onFakeDevice();
  const buffer = take(16);
  give(buffer, false);
  give(buffer);
  expect(buffer.destroyed).toBe(true);
  expect([pool.numBytesUsed, pool.numBytesAllocated, pool.getNumFreeBuffers()]).toEqual([0, 0, 0]);
});

it('keeps half as much again as was ever in use and 64 MB, and lets go first what was asked for longest ago', () => {
  const { take, give, pool, made } = onFakeDevice();
  for (let i = 0; i < 70; i++) give(take((i + 1) * megabyte));
  expect(made.some(({ destroyed }) => destroyed)).toBe(false);
  pool.trim();
  const [gone, kept] = [made.filter(({ destroyed }) => destroyed), made.filter(({ destroyed }) => !destroyed)];
  expect(pool.numBytesAllocated).toBeLessThanOrEqual(1.5 * 70 * megabyte + 64 * megabyte);
  expect(pool.numBytesAllocated).toBe(kept.reduce((sum, { size }) => sum + size, 0));
  expect(Math.max(...gone.map(({ number }) => number))).toBeLessThan(Math.min(...kept.map(({ number }) => number)));
  expect(pool.getNumFreeBuffers()).toBe(kept.length);
});

it('never destroys what is in use but at its end', () => {
  const { take, give, pool } = onFakeDevice();
  const used = take(16);
  for (let i = 0; i < 40; i++) give(take((10 + i) * megabyte));
  pool.trim();
  expect(used.destroyed).toBe(false);
  pool.dispose();
  expect(used.destroyed).toBe(true);
  expect(pool.numBytesAllocated).toBe(0);
});
