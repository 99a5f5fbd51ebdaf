import { describe, expect, it } from 'vitest';
import {
  addressWords,
  bytesOf,
  createDraw,
  memory,
  noise,
  tensor1d,
  tidy,
  updateGroups,
  updateGroupsOp,
  zeros,
  type GroupCodes,
  type UpdateGroupsOptions,
  type Tensor,
} from '../src/index.ts';

const address = createDraw(7, 3).at('m.weight#rounding');

/** Nothing stored yet: zeros of `size` entries. */
const empty = (size: number, groupSize: number): GroupCodes => {
  const groups = Math.ceil(size / groupSize);
  return { codes: zeros([Math.ceil(size / 4)], 'int32'), scales: zeros([groups]), zeros: zeros([Math.ceil(groups / 4)], 'int32') };
};

interface Host {
  readonly codes: number[];
  readonly scales: number[];
  readonly zeros: number[];
  readonly values: number[];
}

function hostOf({ codes, scales, zeros: zeroWords }: GroupCodes, size: number, groupSize: number): Host {
  const host = {
    codes: [...bytesOf(codes.dataSync() as Int32Array, size)],
    scales: [...scales.dataSync()],
    zeros: [...bytesOf(zeroWords.dataSync() as Int32Array, scales.size)],
  };
  const group = (e: number): number => Math.floor(e / groupSize);
  return { ...host, values: host.codes.map((code, e) => Math.fround((code - host.zeros[group(e)]!) * host.scales[group(e)]!)) };
}

/** What is read off tensors that do not outlive it. */
function onHost<V>(read: () => V): V {
  let found: V;
  tidy(() => {
    found = read();
  });
  return found!;
}

const updated = (stored: GroupCodes, update: readonly number[], options: UpdateGroupsOptions): GroupCodes =>
  tidy(() => ({ ...updateGroups(stored, tensor1d([...update]), options) }));

/** One update of what is stored, on the host; nothing is left on the device. */
function after(values: readonly number[], groupSize: number, { stored, ...options }: { stored?: GroupCodes; chance?: boolean } = {}): Host {
  return onHost(() => {
    const update = tensor1d([...values]);
    const made = updateGroups(stored ?? empty(values.length, groupSize), update, {
      groupSize,
      ...(options.chance && { noise: address }),
    });
    return hostOf(made, values.length, groupSize);
  });
}

const close = (given: readonly number[], expected: readonly number[], by: number): void => {
  expect(given).toHaveLength(expected.length);
  given.forEach((value, i) => expect(Math.abs(value - expected[i]!)).toBeLessThan(by));
};

describe('a matrix in groups of bytes', () => {
  it('has the codes of the reference, rounded to the nearest', () => {
    const { codes, scales, zeros: zero, values } = after([-0.3, 0, 0.1, 0.45], 4);
    expect([codes, zero]).toEqual([[0, 102, 136, 255], [102]]);
    close(scales, [0.00294118], 1e-8);
    close(values, [-0.3, 0, 0.1, 0.45], 1e-7);
  });

  it('keeps values that are all of one sign', () => {
    const { codes, values } = after([1, 1.1, 1.2, 1.3], 4);
    expect(codes).toEqual([196, 216, 235, 255]);
    close(values, [0.99922, 1.10118, 1.19804, 1.3], 1e-5);
    close(after([-1, -1.1, -1.2, -1.3], 4).values, [-0.99922, -1.10118, -1.19804, -1.3], 1e-5);
    expect(after([0, 0, 0, 0], 4).values).toEqual([0, 0, 0, 0]);
  });

  it('rounds by chance without bias, and never a whole number', () => {
    // The ends of the range are codes, so that the step is 1/100.
    const size = 200_000;
    const values = Array.from({ length: size }, (_, e) => (e % 400 === 0 ? 2.55 : e % 400 === 1 ? 0 : e % 400 === 2 ? 0.07 : 0.023));
    const { codes } = after(values, 400, { chance: true });
    const some = (k: number): number[] => codes.filter((_, e) => e % 400 === k);
    expect(new Set(some(0))).toEqual(new Set([255]));
    expect(new Set(some(1))).toEqual(new Set([0]));
    const others = codes.filter((_, e) => e % 400 > 2);
    expect(Math.abs(others.reduce((sum, code) => sum + code, 0) / others.length - 2.3)).toBeLessThan(0.003);
    expect(new Set(others)).toEqual(new Set([2, 3]));
    // 7 · (2.55 / 255) is not exactly 0.07 in f32.
    expect(some(2).every((code) => code === 7 || code === 6 || code === 8)).toBe(true);
    expect(after(values, 400, { chance: true }).codes).toEqual(codes);
  });

  it('adds up small updates by chance, and loses all of them to the nearest', () => {
    const size = 256;
    const draws = onHost(() => [...noise([size], createDraw(1, 1).at('w'), 'gaussian').dataSync()]);
    const start = draws.map((value, e) => (e === 0 ? -4 : e === 1 ? 4 : Math.max(-4, Math.min(4, value))));
    const run = (chance: boolean): number => {
      let stored = tidy(() => ({ ...updateGroups(empty(size, size), tensor1d(start), { groupSize: size }) }));
      const first = hostOf(stored, size, size);
      const step = first.scales[0]! / 10;
      let now = first;
      for (let i = 0; i < 1000; i++) {
        const update = now.values.map((value, e) => (e < 2 ? start[e]! - value : step));
        const next = updated(stored, update, { groupSize: size, ...(chance && { noise: createDraw(1, i).at('w#rounding') }) });
        Object.values(stored).forEach((tensor: Tensor) => tensor.dispose());
        stored = next;
        now = hostOf(stored, size, size);
      }
      Object.values(stored).forEach((tensor: Tensor) => tensor.dispose());
      const moved = now.codes.map((code, e) => code - now.zeros[0]! - (first.codes[e]! - first.zeros[0]!)).slice(2);
      return moved.reduce((sum, value) => sum + Math.abs(value), 0) / moved.length;
    };
    const before = memory().numTensors;
    expect(run(false)).toBe(0);
    const moved = run(true);
    expect(moved).toBeGreaterThan(90);
    expect(moved).toBeLessThan(102);
    expect(memory().numTensors).toBe(before);
  });

  it.each([
    [1, 4],
    [7, 8],
    [64, 64],
    [65, 16],
    [1000, 256],
    [5000, 24],
    [70_000, 12],
  ])('is the reference bit for bit on the host, %i entries in groups of %i', (size, groupSize) => {
    const { given, expected } = onHost(() => {
      const wave = (seed: number): Tensor => tensor1d(Array.from({ length: size }, (_, e) => Math.sin(seed + e * 1.7) * (1 + (e % 5))));
      const stored = updateGroups(empty(size, groupSize), wave(1), { groupSize });
      const update = wave(2);
      const noisy = [undefined, address].map((at) => {
        const made = updateGroups(stored, update, { groupSize, shrink: 0.9, ...(at && { noise: at }) });
        const attributes = {
          ...addressWords(address),
          length: size,
          groupSize,
          shrink: Math.fround(0.9),
          stochastic: at !== undefined,
        };
        const [codes, scales, zeroWords] = updateGroupsOp.reference({ ...stored, update } as never, attributes) as [Tensor, Tensor, Tensor];
        return [hostOf(made, size, groupSize), hostOf({ codes, scales, zeros: zeroWords }, size, groupSize)] as const;
      });
      return { given: noisy.map(([one]) => one), expected: noisy.map(([, two]) => two) };
    });
    expect(given).toEqual(expected);
  });

  it('refuses parts that do not fit', () => {
    tidy(() => {
      const update = tensor1d([1, 2, 3, 4, 5, 6, 7, 8]);
      expect(() => updateGroups(empty(8, 4), update, { groupSize: 6 })).toThrow(/multiple of 4/);
      expect(() => updateGroups(empty(8, 4), update, { groupSize: 8 })).toThrow(/1 scales/);
    });
  });
});
