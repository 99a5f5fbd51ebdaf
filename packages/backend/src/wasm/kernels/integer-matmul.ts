import { integerLevels, integerMatMulOp, type PackedShape } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { wasmKernel } from './kernel.ts';
import { formatNumbers, planesAt, tableBytes, writeAddresses, type Parts } from './packed-matmul.ts';

type Attributes = PackedShape & { readonly activations: 'int16' | 'int8' };

/** Word of the table that holds what a rounded codebook's integers are multiples of. */
const unitAt = 10;

/** A few rows of x, rounded once, then multiplied with the codes of W as they lie. */
export const integerMatMulKernel = (device: WasmDevice): KernelConfig =>
  wasmKernel<Parts & { readonly x: TensorInfo }, Attributes>(
    device,
    integerMatMulOp.kernelName,
    // Inputs and attributes go on whole: to copy all but one of them costs as much as the launch, 211 times a token.
    (inputs, attributes) => {
      const { x, codebook } = inputs;
      const { out: columns, bits = 0, activations } = attributes;
      const rows = x.shape[0]!;
      const width = x.shape[1]!;
      const y = device.output([rows, columns]);
      const format = formatNumbers.indexOf(attributes.format);
      const levels = integerLevels[activations];
      const bytes = activations === 'int8' ? device.kernels['takesBytes']!(format, bits) : 0;
      const blocks = (rows * width) / 32;
      const codes = device.shared(tableBytes + blocks * (bytes === 1 ? 40 : 72)) + tableBytes;
      const scales = codes + blocks * (bytes === 1 ? 32 : 64);
      const sums = scales + blocks * 4;
      const pairs = device.kernels['takesPairs']!(format, bits);
      device.run('quantizeActivations', [device.address(x), levels.x, bytes, pairs, codes, scales, sums], {
        tasks: blocks,
        work: rows * width,
      });
      const table = writeAddresses(device, inputs, attributes);
      if (codebook !== undefined) writeIntegers(device, table, device.stored(codebook), { levels: levels.codebook, bytes: bytes === 1 });
      // A few µs: what a thread may have to wait for at the end of a call.
      const taskColumns = 16;
      device.run('multiplyIntegers', [codes, scales, sums, bytes, format, table, width, rows, device.address(y), columns, taskColumns], {
        tasks: Math.ceil(columns / taskColumns),
        // Decoding an element and its multiply-add, as in products of one row that are exact.
        work: rows * columns * width * 4,
      });
      return y;
    },
  );

/** A codebook in whole multiples of its largest value / levels: bytes 64 more than they stand for, or low bytes and then high ones. */
function writeIntegers(
  device: WasmDevice,
  table: number,
  codebook: Float32Array,
  { levels, bytes }: { levels: number; bytes: boolean },
): void {
  const largest = codebook.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const inverse = Math.fround(levels / largest);
  const planes = device.bytes(table + planesAt, 32);
  for (const [i, value] of codebook.entries()) {
    const integer = largest === 0 ? 0 : nearestEven(Math.fround(value * inverse));
    planes[i] = bytes ? integer + 64 : integer;
    planes[16 + i] = integer >> 8;
  }
  new Float32Array(device.words(table, 16).buffer, table, 16)[unitAt] = largest / levels;
}

/** As the machine rounds. */
function nearestEven(value: number): number {
  const below = Math.floor(value);
  const rest = value - below;
  return below + (rest > 0.5 || (rest === 0.5 && below % 2 !== 0) ? 1 : 0);
}
