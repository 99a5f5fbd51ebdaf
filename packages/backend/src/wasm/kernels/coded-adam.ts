import { codedAdamOp, type CodedAdamAttributes } from '@niwaki/tensor';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import { codeTable } from '../../block-code.ts';
import type { WasmDevice } from '../device.ts';
import { share } from './copies.ts';
import { sizeOf, wasmKernel } from './kernel.ts';

type Coded = Readonly<Record<'momentumWords' | 'momentumScales' | 'varianceWords' | 'varianceScales', TensorInfo>>;
type Inputs = Coded & Readonly<Record<'gradient' | 'factors', TensorInfo>>;
type Attributes = CodedAdamAttributes & { readonly overwrite: boolean };

/** Entries of one task. */
const taskSize = 4096;
/** Multiply-adds that an entry is worth: two look-ups and two searches. */
const workPerEntry = 60;

/** One pass over bytes instead of five over floats, block by block and where these lie if they may. Scratch: 12 bytes an entry of one block a thread; tables of 90 KB stay. */
export const codedAdamKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Inputs, Attributes>(device, codedAdamOp.kernelName, ({ gradient, factors, ...coded }, attributes) => {
    const { momentumWords, momentumScales, varianceWords, varianceScales } = coded;
    const moments = [momentumWords, momentumScales, varianceWords, varianceScales];
    const { beta1, beta2, eps, guard, overwrite } = attributes;
    const written = (operand: TensorInfo): TensorInfo => (overwrite ? share(device, operand) : device.output(operand.shape, operand.dtype));
    if (device.floats(factors)[2] === 0) return [written(gradient), ...moments.map((each) => share(device, each))];
    const size = sizeOf(gradient.shape);
    const blockSize = Math.min(attributes.blockSize, Math.ceil(size / 4) * 4);
    const tables = device.constant(`coded adam ${guard}`, () => tablesOf(guard));
    const outputs = [gradient, ...moments].map(written);
    const taskBlocks = Math.max(1, Math.floor(taskSize / blockSize));
    const addresses = [gradient, factors, ...moments, ...outputs].map(device.address);
    device.run('codedAdam', [tables, ...addresses, size, blockSize, beta1, beta2, eps, 1 - beta1, 1 - beta2, taskBlocks], {
      tasks: Math.ceil(size / blockSize / taskBlocks),
      work: size * workPerEntry,
      scratchBytes: device.kernels['codedAdamBytes']!(blockSize),
    });
    return outputs;
  }),
];

/** In the order that assembly/coded-adam.ts reads them in. */
function tablesOf(guard: boolean): Uint8Array {
  const [momentum, variance] = [true, false].map((signed) => codeTable({ signed, guard })) as [CodeTable, CodeTable];
  const parts = [momentum.map, variance.map, momentum.boundaries, variance.boundaries, momentum.codes, variance.codes];
  const bytes = new Uint8Array(parts.reduce((sum, { byteLength }) => sum + byteLength, 0));
  let at = 0;
  for (const { buffer, byteOffset, byteLength } of parts) {
    bytes.set(new Uint8Array(buffer, byteOffset, byteLength), at);
    at += byteLength;
  }
  return bytes;
}

type CodeTable = ReturnType<typeof codeTable>;
