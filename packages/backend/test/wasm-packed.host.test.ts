import {
  dispose,
  ggufBlocks,
  packBytes,
  packedMatMul,
  packedMatMulOp,
  packedRows,
  packedRowsOp,
  runOp,
  tensor1d,
  tensor2d,
  tidy,
} from '@niwaki/tensor';
import type { GgufFormat, PackedShape, PackedTensors, Tensor, Tensor1D, Tensor2D } from '@niwaki/tensor';
import { grad, sum } from '@tensorflow/tfjs-core';
import { beforeAll, describe, expect, it } from 'vitest';
import { distance, kernelDistance, numbers, useBuild, wasmBuilds } from './wasm-builds.ts';

const random = numbers(5);
/** Decoded entries are equal bit for bit; what differs is the order of their sums. */
const tolerance = 1e-5;

const nf4 = [
  -1, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0, 0.0795803, 0.1609302, 0.2461123, 0.33791524,
  0.44070983, 0.562617, 0.72295684, 1,
];

/** Random bytes in which every half-precision scale is a small finite number. */
function blocks(format: GgufFormat, elements: number): Tensor1D {
  const { elements: per, bytes } = ggufBlocks[format];
  const count = elements / per;
  const data = Uint8Array.from(random([count * bytes]).dataSync(), (v) => Math.floor((v + 1) * 127.99));
  const halves: Readonly<Record<GgufFormat, readonly number[]>> = {
    F16: [0],
    BF16: [],
    Q4_0: [0],
    Q4_1: [0, 2],
    Q8_0: [0],
    Q4_K: [0, 2],
    Q6_K: [208],
  };
  // High byte of a half: sign and exponent between 2^-7 and 2^0.
  for (let block = 0; block < count; block++)
    for (const at of halves[format]) data[block * bytes + at + 1] = (data[block * bytes + at + 1]! & 0x83) | 0x20;
  if (format === 'BF16') for (let i = 1; i < data.length; i += 2) data[i] = (data[i]! & 0x80) | 0x3e;
  return packBytes(data);
}

function packed(shape: PackedShape): PackedTensors {
  const { format, out, in: width, blockSize } = shape;
  const count = Math.ceil((out * width) / blockSize);
  const bytes = (length: number): Uint8Array => Uint8Array.from(random([length]).dataSync(), (v) => Math.floor((v + 1) * 127.99));
  if (format === 'affine' || format === 'affine-symmetric') {
    const stream = packBytes(bytes(Math.ceil((out * width * shape.bits!) / 8)));
    const zeros = packBytes(bytes(count).map((byte) => byte & (2 ** shape.bits! - 1)));
    return { codes: stream, scales: random([count], 0.1), ...(format === 'affine' ? { zeros } : {}) };
  }
  if (format !== 'codebook4' && format !== 'codebook4-nested') return { blocks: blocks(format, out * width) };
  const codes = packBytes(bytes(Math.ceil((out * width) / 2)));
  const codebook = tensor1d(nf4);
  if (format === 'codebook4') return { codes, codebook, absmax: random([count], 0.3) };
  const nestedMap = random([256], 0.2);
  return {
    codes,
    codebook,
    absmax: packBytes(bytes(count)),
    nestedMap,
    nestedAbsmax: random([Math.ceil(count / 256)]),
    nestedOffset: tensor1d([0.1]),
  };
}

const shapes: readonly PackedShape[] = [
  ...(['codebook4', 'codebook4-nested'] as const).flatMap((format) =>
    [
      [7, 33, 64],
      [1, 1, 64],
      [65, 100, 32],
      [40, 300, 64],
      [300, 65, 128],
      [64, 1000, 64],
    ].map(([out, width, blockSize]) => ({ format, out: out!, in: width!, blockSize: blockSize! })),
  ),
  ...(['F16', 'BF16'] as const).flatMap((format) =>
    [
      [5, 7],
      [70, 301],
    ].map(([out, width]) => ({ format, out: out!, in: width!, blockSize: 1 })),
  ),
  ...(['Q4_0', 'Q4_1', 'Q8_0'] as const).flatMap((format) =>
    [
      [7, 32],
      [65, 288],
      [300, 352],
    ].map(([out, width]) => ({ format, out: out!, in: width!, blockSize: 32 })),
  ),
  ...(['Q4_K', 'Q6_K'] as const).flatMap((format) =>
    [
      [7, 256],
      [300, 512],
    ].map(([out, width]) => ({ format, out: out!, in: width!, blockSize: 256 })),
  ),
  ...(['affine', 'affine-symmetric'] as const).flatMap((format) =>
    ([2, 3, 4, 8] as const).flatMap((bits) =>
      [
        [7, 33, 33],
        [65, 96, 32],
        [70, 320, 64],
        [3, 40, 8],
        [35, 416, 32],
        [9, 768, 384],
        [6, 512, 128],
      ].map(([out, width, blockSize]) => ({ format, bits, out: out!, in: width!, blockSize: blockSize! })),
    ),
  ),
];

describe.each(Object.entries(wasmBuilds))('Packed products (%s)', (_, options) => {
  beforeAll(() => useBuild(options));

  for (const shape of shapes) {
    const name = `${shape.format}${shape.bits === undefined ? '' : ` of ${shape.bits} bits`} ${shape.out} x ${shape.in}`;

    it(`${name}: rows have the reference's very bits`, () => {
      const ids = tensor1d(
        Int32Array.from({ length: shape.out + 2 }, (_, i) => (i * 5) % shape.out),
        'int32',
      );
      expect(kernelDistance(packedRowsOp, { ...(packed(shape) as { [name: string]: Tensor }), ids }, shape, runOp)).toBe(0);
    });

    it(`${name}: products both ways equal decoding first`, () => {
      for (const rows of [1, 3, 4, 5, 64]) {
        for (const transposed of [false, true]) {
          const inputs = { ...(packed(shape) as { [name: string]: Tensor }), x: random([rows, transposed ? shape.out : shape.in]) };
          expect(kernelDistance(packedMatMulOp, inputs, { ...shape, transposed }, runOp)).toBeLessThan(tolerance);
        }
      }
    });
  }

  it('gives the gradient of x through the same bytes', () => {
    const shape: PackedShape = { format: 'codebook4', out: 20, in: 30, blockSize: 64 };
    const parts = packed(shape);
    tidy(() => {
      const dx = grad((x) => sum(packedMatMul(x as Tensor2D, parts, shape)))(random([6, 30]));
      const dense = packedRows(
        tensor1d(
          Int32Array.from({ length: 20 }, (_, i) => i),
          'int32',
        ),
        parts,
        shape,
      );
      const columns = sum(dense, 0).dataSync();
      expect(
        distance(
          dx.dataSync(),
          Float32Array.from({ length: 180 }, (_, i) => columns[i % 30]!),
        ),
      ).toBeLessThan(tolerance);
    });
    dispose(parts as { [name: string]: Tensor });
  });

  it('names an id outside of the matrix, and a side that does not fit', () => {
    const shape: PackedShape = { format: 'F16', out: 3, in: 4, blockSize: 1 };
    const parts = packed(shape);
    tidy(() => {
      expect(() => packedRows(tensor1d([0, 3], 'int32'), parts, shape)).toThrow(/id 3 is outside of \[0, 3\)/);
      expect(() => packedMatMul(random([2, 5]) as Tensor2D, parts, shape)).toThrow(/5 columns.*takes 4/);
    });
    dispose(parts as { [name: string]: Tensor });
  });
});

it('gives a row of x the same bits on one thread and on two', async () => {
  for (const relaxed of [true, false]) {
    for (const shape of [
      { format: 'affine', bits: 3, out: 1030, in: 1088, blockSize: 64 },
      { format: 'Q4_1', out: 1030, in: 1088, blockSize: 32 },
      { format: 'Q4_K', out: 1030, in: 1024, blockSize: 256 },
    ] as const) {
      const parts = packed(shape);
      const x = random([1, shape.in]).dataSync();
      const results: Float32Array[] = [];
      for (const threads of [1, 2]) {
        await useBuild({ threads, relaxed });
        results.push(tidy(() => packedMatMul(tensor2d(x, [1, shape.in]), parts, shape).dataSync() as Float32Array));
      }
      expect(results[1]).toEqual(results[0]);
      dispose(parts as { [name: string]: Tensor });
    }
  }
});
