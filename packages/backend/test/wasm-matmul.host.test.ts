import { gather, matMul, memory, tensor, tidy, oneHot, tensor1d, type Tensor } from '@niwaki/tensor';
import { engine, fused, grad, sum } from '@tensorflow/tfjs-core';
import { beforeAll, describe, expect, it } from 'vitest';
import { distance, numbers, useBuild, wasmBuilds } from './wasm-builds.ts';

const random = numbers(11);
/** f32 sums of up to 520 products against f64 ones, relative to the largest entry. */
const tolerance = 1e-5;

interface Product {
  readonly rows: number;
  readonly columns: number;
  readonly depth: number;
}

/** The product in f64. */
function reference(a: ArrayLike<number>, b: ArrayLike<number>, { rows, columns, depth }: Product, ta: boolean, tb: boolean): Float64Array {
  const c = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      let s = 0;
      for (let k = 0; k < depth; k++) s += a[ta ? k * rows + i : i * depth + k]! * b[tb ? j * depth + k : k * columns + j]!;
      c[i * columns + j] = s;
    }
  }
  return c;
}

const sizes: readonly (readonly [rows: number, columns: number, depth: number])[] = [
  [1, 1, 1],
  [1, 8, 8],
  [2, 40, 7],
  [3, 50, 65],
  [4, 64, 64],
  [7, 33, 19],
  [13, 300, 70],
  [50, 520, 264],
  [300, 17, 5],
  [1000, 7, 3],
  [1, 1000, 65],
  [500, 1, 30],
  [97, 130, 520],
];

describe.each(Object.entries(wasmBuilds))('Products (%s)', (_, options) => {
  beforeAll(() => useBuild(options));

  for (const [rows, columns, depth] of sizes) {
    it(`equals f64 for ${rows} x ${depth} times ${depth} x ${columns}, either side transposed or not`, () => {
      for (const ta of [false, true]) {
        for (const tb of [false, true]) {
          tidy(() => {
            const a = random(ta ? [depth, rows] : [rows, depth]);
            const b = random(tb ? [columns, depth] : [depth, columns]);
            const got = matMul(a, b, ta, tb).dataSync();
            expect(distance(got, reference(a.dataSync(), b.dataSync(), { rows, columns, depth }, ta, tb))).toBeLessThan(tolerance);
          });
        }
      }
    });
  }

  it('broadcasts batches of either side, numpy style', () => {
    tidy(() => {
      const [rows, columns, depth] = [9, 14, 11];
      for (const [left, right, out] of [
        [[3, 1], [4], [3, 4]],
        [
          [2, 3],
          [2, 3],
          [2, 3],
        ],
        [[], [5], [5]],
        [[5], [], [5]],
        [
          [1, 2],
          [6, 1],
          [6, 2],
        ],
      ] as const) {
        for (const [ta, tb] of [
          [false, false],
          [false, true],
          [true, false],
        ] as const) {
          const a = random([...left, ...(ta ? [depth, rows] : [rows, depth])]);
          const b = random([...right, ...(tb ? [columns, depth] : [depth, columns])]);
          const c = matMul(a, b, ta, tb);
          expect(c.shape).toEqual([...out, rows, columns]);
          const [x, y] = [a.dataSync(), b.dataSync()];
          const at = (shape: readonly number[], index: readonly number[]): number => {
            const own = shape.map((side, i) => (side === 1 ? 0 : index[i + out.length - shape.length]!));
            return own.reduce((sum, i, axis) => sum * shape[axis]! + i, 0);
          };
          const wanted: number[] = [];
          for (let i = 0; i < out.reduce((p: number, s) => p * s, 1); i++) {
            const index = out.length === 1 ? [i] : [Math.floor(i / out[1]!), i % out[1]!];
            const p = x.subarray(at(left, index) * rows * depth);
            const q = y.subarray(at(right, index) * depth * columns);
            wanted.push(...reference(p, q, { rows, columns, depth }, ta, tb));
          }
          expect(distance(c.dataSync(), wanted)).toBeLessThan(tolerance);
        }
      }
    });
  });

  it('gives zeros where the inner side is empty, and nothing where an outer side is', () => {
    tidy(() => {
      expect(Array.from(matMul(tensor([], [2, 0], 'float32'), tensor([], [0, 3], 'float32')).dataSync())).toEqual([0, 0, 0, 0, 0, 0]);
      expect(matMul(tensor([], [0, 4], 'float32'), random([4, 3])).shape).toEqual([0, 3]);
    });
  });

  it('fuses a bias and an activation', () => {
    tidy(() => {
      const [a, b, bias] = [random([5, 6]), random([6, 7]), random([7])] as [Tensor, Tensor, Tensor];
      const y = fused.matMul({ a: a as never, b: b as never, bias, activation: 'relu' }).dataSync();
      const plain = reference(a.dataSync(), b.dataSync(), { rows: 5, columns: 7, depth: 6 }, false, false);
      const wanted = plain.map((v, i) => Math.max(0, v + bias.dataSync()[i % 7]!));
      expect(distance(y, wanted)).toBeLessThan(tolerance);
    });
  });

  it('sums the gradient of repeated rows of a table', () => {
    tidy(() => {
      const table = random([5, 3]);
      const ids = tensor1d([4, 0, 4, 4], 'int32');
      const dtable = grad((t) => sum(gather(t, ids)))(table);
      expect(Array.from(dtable.dataSync())).toEqual([1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 3, 3]);
    });
  });

  it('gathers along any axis', () => {
    tidy(() => {
      const x = tensor([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [2, 3, 2]);
      expect(Array.from(gather(x, tensor1d([2, 0], 'int32'), 1).dataSync())).toEqual([5, 6, 1, 2, 11, 12, 7, 8]);
      expect(Array.from(gather(x, tensor1d([1, 1, 0], 'int32'), -1).dataSync())).toEqual([
        2, 2, 1, 4, 4, 3, 6, 6, 5, 8, 8, 7, 10, 10, 9, 12, 12, 11,
      ]);
      expect(() => gather(x, tensor1d([2], 'int32'), 0)).toThrow(/outside/);
    });
  });

  it('writes ones and not their bits into a float one-hot', () => {
    tidy(() => {
      expect(Array.from(oneHot(tensor1d([1, 0, -1], 'int32'), 2, 1, 0, 'float32').dataSync())).toEqual([0, 1, 1, 0, 0, 0]);
    });
  });

  it('keeps no tensor', () => {
    const before = memory().numTensors;
    tidy(() => void matMul(random([40, 30]), random([2, 30, 20])));
    expect(memory().numTensors).toBe(before);
    expect(engine().backendName).toMatch(/^niwaki-wasm/);
  });
});

describe('Results do not depend on the number of threads', () => {
  it('bit for bit, large enough for every thread to take part', async () => {
    const make = numbers(3);
    const [a, b] = [make([300, 500]).dataSync(), make([500, 700]).dataSync()];
    const results: Float32Array[] = [];
    for (const threads of [1, 2, 3]) {
      await useBuild({ threads });
      tidy(() => results.push(matMul(tensor(a, [300, 500]), tensor(b, [500, 700])).dataSync() as Float32Array));
    }
    expect(results[1]).toEqual(results[0]);
    expect(results[2]).toEqual(results[0]);
  });
});
