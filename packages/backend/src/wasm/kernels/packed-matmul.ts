import {
  bytesOf,
  ggufBlocks,
  packedMatMulOp,
  packedRowsOp,
  ShapeError,
  type GgufFormat,
  type PackedFormat,
  type PackedParts,
  type PackedShape,
} from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { divide, forPackedRows } from '../gemm.ts';
import { sizeOf, wasmKernel } from './kernel.ts';

/** Formats by their number in assembly/dequant.ts. */
export const formatNumbers: readonly PackedFormat[] = [
  'codebook4',
  'codebook4-nested',
  'F16',
  'BF16',
  'Q4_0',
  'Q4_1',
  'Q8_0',
  'Q4_K',
  'Q6_K',
  'affine',
  'affine-symmetric',
];

export type Parts = { readonly [K in keyof PackedParts]: TensorInfo };

/** Products and rows of packed matrices, straight from the bytes of the file. */
export const packedKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Parts & { readonly x: TensorInfo }, PackedShape & { transposed: boolean }>(
    device,
    packedMatMulOp.kernelName,
    (inputs, attributes) => [multiplyPacked(device, inputs.x, inputs, attributes, attributes.transposed)],
  ),
  wasmKernel<Parts & { readonly ids: TensorInfo }, PackedShape>(device, packedRowsOp.kernelName, ({ ids, ...parts }, shape) => [
    rows(device, ids, parts, shape),
  ]),
];

/** Room at the front of the shared scratch for what `Parts` of assembly/dequant.ts describes. */
export const tableBytes = 128;
export const planesAt = 64;

/** Which one of several matrices, whose parts lie after one another in sections of one size. */
export interface Section {
  readonly index: number;
  readonly count: number;
}
const whole: Section = { index: 0, count: 1 };

const addressIn = (device: WasmDevice, part: TensorInfo, { index, count }: Section): number =>
  device.address(part) + index * 4 * (sizeOf(part.shape) / count);

interface TableOptions {
  readonly section?: Section;
  /** Where it is written, default the front of the shared scratch. */
  readonly table?: number;
}

export function writeTable(device: WasmDevice, parts: Parts, shape: PackedShape, options: TableOptions = {}): number {
  const { codebook } = parts;
  const table = writeAddresses(device, parts, shape, options);
  if (codebook !== undefined) {
    const { index } = options.section ?? whole;
    writePlanes(bytesOf(device.stored(codebook).subarray(16 * index, 16 * index + 16)), device.bytes(table + planesAt, 64));
  }
  return table;
}

/** The table without the planes of a codebook. */
export function writeAddresses(
  device: WasmDevice,
  { codes, blocks, codebook, absmax, nestedMap, nestedAbsmax, nestedOffset, scales, zeros }: Parts,
  { blockSize, bits }: PackedShape,
  { section = whole, table = device.shared(tableBytes) }: TableOptions = {},
): number {
  const parts = [codes ?? blocks, codebook, absmax, nestedMap, nestedAbsmax, nestedOffset];
  const addressOf = (part: TensorInfo | undefined): number => (part === undefined ? 0 : addressIn(device, part, section));
  device.words(table, planesAt / 4).set([...parts.map(addressOf), blockSize, addressOf(scales), addressOf(zeros), bits ?? 0]);
  return table;
}

/** The bytes of 16 floats, regrouped: a byte lookup finds one byte of each value at a time. */
function writePlanes(values: Uint8Array, planes: Uint8Array): void {
  for (let i = 0; i < 16; i++) for (let byte = 0; byte < 4; byte++) planes[16 * byte + i] = values[4 * i + byte]!;
}

/** Elements at whose multiples a row may be cut. */
export const blockOf = ({ format }: PackedShape): number => (format in ggufBlocks ? ggufBlocks[format as GgufFormat].elements : 1);

export function multiplyPacked(device: WasmDevice, x: TensorInfo, parts: Parts, shape: PackedShape, transposed: boolean): TensorInfo {
  const [count, depth] = x.shape as [number, number];
  const { out: outer, in: width } = shape;
  const [expected, columns] = transposed ? [outer, width] : [width, outer];
  if (depth !== expected) {
    throw new ShapeError(
      `packed matMul: x has ${depth} columns, a ${transposed ? 'transposed ' : ''}weight of [${outer}, ${width}] takes ${expected}`,
      {
        x: x.shape,
        weight: [outer, width],
      },
    );
  }
  const y = device.output([count, columns]);
  const at = device.address(y);
  const format = formatNumbers.indexOf(shape.format);
  const work = count * columns * depth;
  if (count === 1 && !transposed && hasOneRow(device, shape)) {
    multiplyOneRow(device, device.address(x), parts, shape, at);
    return y;
  }
  if (count <= 4) {
    const table = writeTable(device, parts, shape);
    const kernel = transposed ? 'multiplyFewRowsTransposed' : 'multiplyFewRows';
    const taskColumns = transposed ? Math.max(128, blockOf(shape)) : 32;
    device.run(kernel, [device.address(x), format, table, width, at, count, transposed ? outer : columns, taskColumns], {
      tasks: Math.ceil(columns / taskColumns),
      // Decoding an element costs a few multiply-adds, whatever the rows.
      work: work + 8 * columns * depth,
      scratchBytes: device.kernels['packedRunBytes']!(),
    });
    return y;
  }
  const a = { at: device.address(x), stride: depth, transposed: false };
  forPackedRows(device, a, { rows: count, depth, reserve: tableBytes, decoded: true }, ({ tiles, start, height }) => {
    const table = writeTable(device, parts, shape);
    const { taskRows, taskColumns } = divide(device, height, columns, transposed ? Math.max(8, blockOf(shape)) : 8);
    device.run(
      'multiplyPackedWeight',
      [tiles, format, table, width, transposed ? 1 : 0, at + start * columns * 4, height, columns, depth, taskRows, taskColumns],
      {
        tasks: Math.ceil(height / taskRows) * Math.ceil(columns / taskColumns),
        work: height * columns * depth,
        scratchBytes: device.kernels['packedWeightBytes']!(taskColumns),
      },
    );
  });
  return y;
}

/** Whether the format has a product of one row with codes that are scaled after they are summed. */
export const hasOneRow = (device: WasmDevice, { format, in: width, blockSize }: PackedShape): boolean =>
  device.kernels['hasOneRow']!(formatNumbers.indexOf(format), width, blockSize) === 1;

/** One row of x, what generation multiplies: codes are scaled after they are summed. */
export function multiplyOneRow(device: WasmDevice, x: number, parts: Parts, shape: PackedShape, y: number, section?: Section): void {
  const { in: width, out: columns, bits = 0 } = shape;
  const format = formatNumbers.indexOf(shape.format);
  const spread = device.kernels['takesSpread']!(format) === 1;
  const spreadAt = device.shared(tableBytes + (spread ? width * 4 + width / 8 : 0)) + tableBytes;
  const sums = spreadAt + width * 4;
  if (spread) device.run('spreadRow', [x, width, format, bits, spreadAt, sums], { tasks: Math.ceil(width / 64), work: width });
  const table = writeTable(device, parts, shape, section && { section });
  const taskColumns = 32;
  device.run('multiplyOneRow', [spread ? spreadAt : x, sums, format, table, width, y, columns, taskColumns], {
    tasks: Math.ceil(columns / taskColumns),
    work: columns * width * 4,
  });
}

function rows(device: WasmDevice, ids: TensorInfo, parts: Parts, shape: PackedShape): TensorInfo {
  const wrong = device.ints(ids).find((id) => !(id >= 0 && id < shape.out));
  if (wrong !== undefined) throw new ShapeError(`packed rows: id ${wrong} is outside of [0, ${shape.out})`, { id: wrong, rows: shape.out });
  const count = ids.shape[0]!;
  const out = device.output([count, shape.in]);
  const args = [device.address(ids), formatNumbers.indexOf(shape.format), writeTable(device, parts, shape), shape.in, device.address(out)];
  device.run('packedRows', args, { tasks: count, work: count * shape.in * 8 });
  return out;
}
