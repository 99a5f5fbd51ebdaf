import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { DeviceError, matMul, memory, ones, softmax, sum, tensor, tidy, type Tensor } from '@niwaki/tensor';
import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { backend, engine, getBackend } from '@tensorflow/tfjs-core';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { init } from '../src/init.ts';
import { loadBinary } from '../src/wasm/binary.ts';
import { initWasm } from '../src/wasm/init-wasm.ts';
import { withSharedMemory } from '../src/wasm/shared-memory.ts';
import { distance, numbers, useBuild } from './wasm-builds.ts';

const random = numbers(17);
/** A tensor whose pages nobody has written: it takes addresses and no memory. */
const untouched = (size: number): Tensor => engine().makeTensorFromTensorInfo((backend() as BackendWasm).makeOutput([size], 'float32'));
const binary = (): Uint8Array => new Uint8Array(readFileSync(new URL('../src/generated/tfjs-backend-wasm-simd.wasm', import.meta.url)));

it('says which device it took, and why', async () => {
  const info = await init({ device: 'wasm', threads: 2 });
  expect(info).toMatchObject({ device: 'wasm', threads: 2, reason: 'asked for' });
  expect(info.description).toMatch(/SIMD, 2 threads$/);
  expect(getBackend()).toBe('niwaki-wasm-2');
  expect(await init({ device: 'wasm', threads: 2 })).toEqual(info);
});

it('refuses devices and thread counts that do not exist', async () => {
  await expect(init({ device: 'webgl' as 'wasm' })).rejects.toThrow(/unknown device 'webgl'/);
  await expect(init({ device: 'constructor' as 'wasm' })).rejects.toThrow(/unknown device 'constructor'/);
  await expect(init({ device: 'wasm', threads: 0 })).rejects.toThrow(/threads/);
  await expect(init({ device: 'wasm', threads: 1.5 })).rejects.toThrow(/threads/);
});

it('adds no listener for uncaught errors to the process', async () => {
  const count = (): number => process.listenerCount('uncaughtException') + process.listenerCount('unhandledRejection');
  const before = count();
  await useBuild({ threads: 3 });
  expect(count()).toBe(before);
});

it("changes one byte of tfjs's binary, and none of a binary that it does not know", () => {
  const known = binary();
  const shared = withSharedMemory(known)!;
  const changed = shared.reduce((indices: number[], byte, i) => (byte === known[i] ? indices : [...indices, i]), []);
  expect(changed.length).toBe(1);
  expect([known[changed[0]!], shared[changed[0]!]]).toEqual([1, 3]);
  expect(withSharedMemory(shared)).toBeUndefined();
  expect(withSharedMemory(known.subarray(0, 8))).toBeUndefined();
});

describe('the binary of our kernels', () => {
  afterEach(() => vi.restoreAllMocks());

  const right = {
    testMadd: (a: number, b: number, c: number) => a * b + c,
    testLookup: (i: number) => 100 + i,
    testDotBytes: (a: number, b: number) => 2 * a * b,
  };
  it.each([
    ['nothing', {}, true],
    // What Node 20 does with the sum of four.
    ['a product of bytes', { testDotBytes: (a: number, b: number) => 4 * a * b }, false],
    ['a lookup', { testLookup: (i: number) => (i === 7 ? 0 : 100 + i) }, false],
    ['a product and a sum', { testMadd: (a: number, b: number) => a * b }, false],
  ])('has the relaxed instructions only where the engine computes them right: %s wrong', async (_, wrong, relaxed) => {
    const instance = { exports: { ...right, ...wrong } } as unknown as WebAssembly.WebAssemblyInstantiatedSource;
    vi.spyOn(WebAssembly, 'instantiate').mockResolvedValue(instance as never);
    expect((await loadBinary({ shared: false })).relaxed).toBe(relaxed);
  });

  it('is refused by name where an engine has no SIMD', async () => {
    vi.spyOn(WebAssembly, 'validate').mockReturnValue(false);
    await expect(loadBinary({ shared: false })).rejects.toThrow(/this engine lacks SIMD/);
  });
});

/** The same binary, its memory without a bound: one that the patch does not know. */
function unbounded(): Uint8Array {
  const bytes = binary();
  let at = 8;
  const lengthAt = (from: number): [value: number, end: number] => {
    let [value, end] = [0, from];
    do value |= (bytes[end]! & 127) << (7 * (end - from));
    while (bytes[end++]! & 128);
    return [value, end];
  };
  for (;;) {
    const [length, start] = lengthAt(at + 1);
    if (bytes[at] === 5) {
      // count, flags, least, most: the least number of pages alone is left.
      const least = bytes.slice(start + 2, lengthAt(start + 2)[1]);
      return new Uint8Array(
        Buffer.concat([bytes.slice(0, at + 1), Uint8Array.of(2 + least.length, 1, 0), least, bytes.slice(start + length)]),
      );
    }
    at = start + length;
  }
}

it("takes a heap of its own and one thread where tfjs's binary is another, with the same bits", async () => {
  const folder = mkdtempSync(join(tmpdir(), 'niwaki-'));
  writeFileSync(join(folder, 'tfjs-backend-wasm-simd.wasm'), unbounded());
  const [a, b] = [numbers(3)([70, 301]).dataSync(), numbers(4)([301, 90]).dataSync()];
  const results = (): ArrayLike<number>[] =>
    tidy(() =>
      [false, true].map((transposed) => {
        const right = transposed ? tensor(b, [90, 301]) : tensor(b, [301, 90]);
        return softmax(matMul(tensor(a, [70, 301]), right, false, transposed)).dataSync();
      }),
    );
  try {
    for (const relaxed of [true, false]) {
      await useBuild({ threads: 1, relaxed });
      const shared = results();
      const options = { threads: 6, relaxed, wasmPaths: pathToFileURL(`${folder}/`) };
      expect((await initWasm(options)).description).toMatch(/, 1 thread \(one thread: tfjs's binary is not the one known/);
      await useBuild(options);
      const { wasm } = backend() as unknown as { wasm: { asm: { memory: WebAssembly.Memory } } };
      expect(wasm.asm.memory.buffer).toBeInstanceOf(ArrayBuffer);
      results().forEach((own, i) => expect(distance(own, shared[i]!)).toBe(0));
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});

it('gives the same results after the heap has grown', async () => {
  await useBuild({ threads: 2 });
  const [a, b] = [random([70, 300]), random([300, 90])] as [Tensor, Tensor];
  const before = matMul(a, b).dataSync();
  const large = untouched(64 << 20);
  expect(distance(matMul(a, b).dataSync(), before)).toBe(0);
  large.dispose();
  expect(distance(matMul(a, b).dataSync(), before)).toBe(0);
});

it('says that the heap is full before tfjs writes anywhere, and works on', async () => {
  await useBuild({ threads: 1 });
  const live = memory().numTensors;
  const kept: Tensor[] = [];
  try {
    // 512 MiB each: the eighth cannot fit below 4 GiB.
    expect(() => {
      for (let i = 0; i < 8; i++) kept.push(untouched(128 << 20));
    }).toThrow(DeviceError);
    expect(kept.length).toBeGreaterThan(3);
    const error = (() => {
      try {
        untouched(256 << 20);
      } catch (caught) {
        return caught as DeviceError;
      }
      return undefined;
    })();
    expect(error?.message).toMatch(/no room for 1073741824 bytes/);
    expect(error?.details['heapBytes']).toBeGreaterThan(2 ** 31);
    // Above 2 GiB addresses are negative as int32.
    tidy(() => {
      const high = ones([1000, 1000]);
      expect(sum(matMul(high, high)).dataSync()[0]).toBe(1e9);
    });
  } finally {
    for (const tensor of kept) tensor.dispose();
  }
  tidy(() => {
    expect(Array.from(matMul(tensor([1, 2], [1, 2]), tensor([3, 4], [2, 1])).dataSync())).toEqual([11]);
  });
  expect(memory().numTensors).toBe(live);
}, 120_000);
