import { describe, expect, it } from 'vitest';
import {
  add,
  concat,
  dispose,
  floatToHalf,
  gradientsOf,
  groupedMatMul,
  matMul,
  memory,
  packBytes,
  packedGroupedMatMul,
  packedRows,
  range,
  reshape,
  ShapeError,
  slice,
  tensor1d,
  tensor2d,
  tensor3d,
  tidy,
  zeros,
  type PackedShape,
  type PackedTensors,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
  type Tensor3D,
} from '@niwaki/tensor';

const wave = (length: number, seed: number): Float32Array =>
  Float32Array.from({ length }, (_, i) => Math.sin(seed + i * 1.7) + 0.1 * Math.cos(i));
const matrix = (rows: number, columns: number, seed: number): Tensor2D => tensor2d(wave(rows * columns, seed), [rows, columns]);
const host = (value: Tensor): number[] => [...value.dataSync()];

interface Values {
  readonly value: number[];
  readonly gradients: (number[] | undefined)[];
}

/** What `run` gives and the gradients behind it, on the host; throws on a leak. */
function valuesOf(run: () => Tensor, xs: readonly Tensor[], dy: Tensor): Values {
  const before = memory().numTensors;
  const { value, gradients } = gradientsOf(run, xs, (y) => [{ of: y, value: dy }]);
  const values = { value: host(value), gradients: gradients.map((gradient) => gradient && host(gradient)) };
  dispose([value, ...gradients.flatMap((gradient) => gradient ?? [])]);
  expect(memory().numTensors).toBe(before);
  return values;
}

function near(got: readonly number[], wanted: readonly number[]): void {
  expect(got.length).toBe(wanted.length);
  const largest = wanted.reduce((most, value) => Math.max(most, Math.abs(value)), 1);
  const off = got.reduce((most, value, i) => Math.max(most, Math.abs(value - wanted[i]!)), 0);
  expect(off / largest).toBeLessThan(1e-5);
}

type Ends = readonly number[];

/** One matrix after another, each over its own rows, by ops that the tape of tfjs differentiates. */
function loop(x: Tensor2D, out: number, ends: Ends, matrixOf: (e: number) => Tensor2D): Tensor2D {
  const parts: Tensor[] = [zeros([ends[0]!, out])];
  for (let e = 0; e + 1 < ends.length; e++) {
    const count = ends[e + 1]! - ends[e]!;
    if (count > 0) parts.push(matMul(slice(x, [ends[e]!, 0], [count, x.shape[1]]), matrixOf(e), false, true));
  }
  return concat([...parts, zeros([x.shape[0] - ends.at(-1)!, out])]) as Tensor2D;
}

const [count, out, width, rows] = [3, 7, 64, 10];
const cases: readonly (readonly [name: string, ends: Ends])[] = [
  ['even runs', [0, 4, 7, 10]],
  ['a run without rows', [0, 6, 6, 10]],
  ['all rows in one run', [0, 0, 10, 10]],
  ['rows that are in no run', [2, 3, 3, 8]],
  ['no rows in any run', [5, 5, 5, 5]],
];

describe('a product over runs of rows', () => {
  const make = (ends: Ends): [Tensor2D, Tensor3D, Tensor2D, Tensor1D] => [
    matrix(rows, width, 1),
    tensor3d(wave(count * out * width, 2), [count, out, width]),
    matrix(rows, out, 3),
    tensor1d([...ends], 'int32'),
  ];

  it.each(cases)('with %s is a loop over the matrices, and so are its gradients', (_, ends) => {
    const [x, w, dy, runs] = make(ends);
    const matrixOf = (e: number): Tensor2D => reshape(slice(w, [e, 0, 0], [1, out, width]), [out, width]);
    const wanted = valuesOf(() => tidy(() => loop(x, out, ends, matrixOf)), [x, w], dy);
    const got = valuesOf(() => groupedMatMul(x, w, runs), [x, w], dy);
    near(got.value, wanted.value);
    near(got.gradients[0]!, wanted.gradients[0] ?? Array(rows * width).fill(0));
    near(got.gradients[1]!, wanted.gradients[1] ?? Array(count * out * width).fill(0));
    // Rows and matrices that met nothing have a gradient of exactly 0.
    const empty = Array.from({ length: count }, (__, e) => e).filter((e) => ends[e] === ends[e + 1]);
    for (const e of empty) expect(got.gradients[1]!.slice(e * out * width, (e + 1) * out * width)).toEqual(Array(out * width).fill(0));
    expect(got.value.slice(ends.at(-1)! * out)).toEqual(Array((rows - ends.at(-1)!) * out).fill(0));
    dispose([x, w, dy, runs]);
  });

  it('gives a frozen stack no gradient, and the same one where nobody reads what it gives', () => {
    const [x, w, dy, runs] = make([1, 4, 7, 10]);
    const both = valuesOf(() => groupedMatMul(x, w, runs), [x, w], dy);
    const frozen = valuesOf(() => groupedMatMul(x, w, runs, { frozen: true }), [x, w], dy);
    expect(frozen.value).toEqual(both.value);
    expect(frozen.gradients).toEqual([both.gradients[0], undefined]);
    expect(valuesOf(() => groupedMatMul(x, w, runs, { unread: true }), [x, w], dy).gradients).toEqual(both.gradients);
    expect(valuesOf(() => groupedMatMul(x, w, runs, { unread: true, frozen: true }), [x], dy).gradients).toEqual([both.gradients[0]]);
    dispose([x, w, dy, runs]);
  });

  it('over parts of a stack, each with its part of the runs, adds up to the whole', () => {
    const before = memory().numTensors;
    const [x, w, dy, runs] = make([0, 4, 7, 10]);
    const [whole, sum] = tidy(() => {
      const part = (e: number, some: number): Tensor =>
        groupedMatMul(x, slice(w, [e, 0, 0], [some, out, width]), slice(runs, [e], [some + 1]));
      return [groupedMatMul(x, w, runs), add(part(0, 1), part(1, 2))].map(host);
    });
    expect(sum).toEqual(whole);
    dispose([x, w, dy, runs]);
    expect(memory().numTensors).toBe(before);
  });

  it('refuses what does not fit together', () => {
    const [x, w, dy, runs] = make([0, 4, 7, 10]);
    tidy(() => {
      expect(() => groupedMatMul(dy, w, runs)).toThrow(/take rows of 64, got x of \[10,7\]/);
      expect(() => groupedMatMul(x, w, tensor1d([0, 10], 'int32'))).toThrow(/3 matrices takes runs int32 \[4\], got int32 \[2\]/);
      expect(() => groupedMatMul(x, w, tensor1d([0, 4, 7, 10]))).toThrow(ShapeError);
      expect(() => groupedMatMul(x, w, tensor1d([0, 4, 3, 10], 'int32'))).toThrow(/got 4 and then 3 at 2/);
      expect(() => groupedMatMul(x, w, tensor1d([0, 4, 7, 11], 'int32'))).toThrow(/10 rows, got 7 and then 11/);
      expect(() => groupedMatMul(x, w, tensor1d([-1, 4, 7, 9], 'int32'))).toThrow(ShapeError);
    });
    dispose([x, w, dy, runs]);
  });
});

describe('a product of packed matrices over runs of rows', () => {
  const bytes = (length: number, seed: number): Uint8Array => Uint8Array.from(wave(length, seed), (v) => Math.floor((v + 2) * 60));
  /** Q8_0: a half, then 32 codes. */
  const blocks = (seed: number): Uint8Array => {
    const data = bytes(((out * width) / 32) * 34, seed);
    const view = new DataView(data.buffer);
    for (let at = 0; at < data.length; at += 34) view.setUint16(at, floatToHalf(Math.sin(at + seed) / 64), true);
    return data;
  };
  const formats: readonly (readonly [shape: PackedShape, parts: (seed: number) => PackedTensors])[] = [
    [
      { format: 'codebook4', out, in: width, blockSize: 32 },
      (seed) => ({ codes: packBytes(bytes((out * width) / 2, seed)), codebook: tensor1d(wave(16, 1)), absmax: tensor1d(wave(14, seed)) }),
    ],
    [
      { format: 'codebook4-nested', out, in: width, blockSize: 64 },
      (seed) => ({
        codes: packBytes(bytes((out * width) / 2, seed)),
        codebook: tensor1d(wave(16, 1)),
        // Seven bytes: a section ends inside a word, and the next begins with one.
        absmax: packBytes(bytes(7, seed)),
        nestedMap: tensor1d(wave(256, 4)),
        nestedAbsmax: tensor1d(wave(1, seed)),
        nestedOffset: tensor1d([seed / 10]),
      }),
    ],
    [
      { format: 'affine', out, in: width, blockSize: 32, bits: 3 },
      (seed) => ({
        codes: packBytes(bytes((out * width * 3) / 8, seed)),
        scales: tensor1d(wave(14, seed)),
        zeros: packBytes(bytes(14, seed).map((byte) => byte & 7)),
      }),
    ],
    [{ format: 'Q8_0', out, in: width, blockSize: 32 }, (seed) => ({ blocks: packBytes(blocks(seed)) })],
  ];

  for (const [shape, partsOf] of formats) {
    it.each(cases)(`${shape.format}, with %s: decoding first gives the same, both ways`, (_, ends) => {
      const [x, dy, runs] = [matrix(rows, width, 1), matrix(rows, out, 3), tensor1d([...ends], 'int32')];
      const each = Array.from({ length: count }, (__, e) => partsOf(e + 5));
      const parts = Object.fromEntries(
        Object.keys(each[0]!).map((name) => [name, concat(each.map((one) => one[name as keyof PackedTensors]!))]),
      ) as PackedTensors;
      const every = range(0, out, 1, 'int32') as Tensor1D;
      const wanted = valuesOf(() => tidy(() => loop(x, out, ends, (e) => packedRows(every, each[e]!, shape))), [x], dy);
      const got = valuesOf(() => packedGroupedMatMul(x, parts, shape, runs), [x], dy);
      near(got.value, wanted.value);
      near(got.gradients[0]!, wanted.gradients[0] ?? Array(rows * width).fill(0));
      expect(valuesOf(() => packedGroupedMatMul(x, parts, shape, runs, { unread: true }), [x], dy).gradients).toEqual(got.gradients);
      dispose([x, dy, runs, every, parts as object, each] as never);
    });
  }

  it('refuses parts that are no sections of one size', () => {
    const [shape, partsOf] = formats[0]!;
    const parts = partsOf(1);
    tidy(() => {
      const runs = tensor1d([0, 1, 2, 3, 10], 'int32');
      expect(() => packedGroupedMatMul(matrix(rows, width, 1), parts, shape, runs)).toThrow(/parts of 4 equal sections/);
    });
    dispose(parts as object as Tensor);
  });
});
