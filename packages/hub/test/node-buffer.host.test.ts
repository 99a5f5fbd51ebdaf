import { expect, it } from 'vitest';
import { decodeFloats, encodeSafetensors, memorySource, openSafetensors } from '../src/index.ts';

// A Node Buffer is a Uint8Array whose `slice` shares memory, often that of a pool: nothing may rely on it to copy.
const values = Float32Array.of(1, -2, 0.5, 3e38);
const bytes = new Uint8Array(values.buffer);

it('reads floats from a Buffer at an odd offset of its memory', () => {
  const pool = Buffer.alloc(32);
  pool.set(bytes, 5);
  const raw = { dtype: 'F32', shape: [4], bytes: pool.subarray(5, 21) };
  expect(decodeFloats(raw)).toEqual(values);
});

it('reads a file from a Buffer, at any offset of its memory', async () => {
  const file = await encodeSafetensors(new Map([['a', { dtype: 'F32', shape: [4], bytes }]]));
  for (let shift = 0; shift < 4; shift++) {
    const pool = Buffer.alloc(file.length + 8);
    pool.set(file, shift);
    const opened = await openSafetensors(memorySource(pool.subarray(shift, shift + file.length)));
    expect(decodeFloats(await opened.read('a'))).toEqual(values);
  }
});
