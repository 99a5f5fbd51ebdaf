import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import { ConfigError } from '@niwaki/tensor';
import { broadcastBatches } from '../../batches.ts';
import type { WasmDevice } from '../device.ts';
import { checkDepths, multiply, multiplyBatch } from '../gemm.ts';
import { finish, type Tail, type TailAttributes } from './finish.ts';
import { sizeOf, wasmKernel } from './kernel.ts';

interface Operands {
  readonly a: TensorInfo;
  readonly b: TensorInfo;
}

interface Transposed {
  readonly transposeA: boolean;
  readonly transposeB: boolean;
}

/** tfjs-wasm multiplies fast only un-batched and un-transposed; every gradient is neither. */
export const matMulKernels = (device: WasmDevice): KernelConfig[] => [
  wasmKernel<Operands, Transposed>(device, 'BatchMatMul', (inputs, attributes) => matMul(device, inputs, attributes)),
  wasmKernel<FusedOperands, FusedAttributes>(device, '_FusedMatMul', (inputs, attributes) => fusedMatMul(device, inputs, attributes)),
];

function matMul(device: WasmDevice, { a, b }: Operands, { transposeA, transposeB }: Transposed): TensorInfo {
  if (a.dtype !== 'float32' || b.dtype !== 'float32') {
    throw new ConfigError(`matMul: the wasm device multiplies float32 only, got ${a.dtype} and ${b.dtype}`, {
      help: "Cast to 'float32' first.",
    });
  }
  const [strideA, strideB] = [a.shape.at(-1)!, b.shape.at(-1)!];
  const [rows, depth] = transposeA ? [strideA, a.shape.at(-2)!] : [a.shape.at(-2)!, strideA];
  const [columns, depthB] = transposeB ? [b.shape.at(-2)!, strideB] : [strideB, b.shape.at(-2)!];
  checkDepths(a.shape, b.shape, depth, depthB);
  const [atA, atB] = [device.address(a), device.address(b)];
  const left = { stride: strideA, transposed: transposeA };
  const right = { stride: strideB, transposed: transposeB };

  const batchA = a.shape.slice(0, -2);
  const batchB = b.shape.slice(0, -2);
  // One matrix for all batches of rows: the batches are just more rows.
  if (sizeOf(batchB) === 1 && batchB.length <= batchA.length && (!transposeA || sizeOf(batchA) === 1)) {
    const out = device.output([...batchA, rows, columns]);
    multiply(device, { at: atA, ...left }, { at: atB, ...right }, device.address(out), { rows: sizeOf(batchA) * rows, columns, depth });
    return out;
  }
  const { shape, pairs } = broadcastBatches(batchA, batchB);
  const out = device.output([...shape, rows, columns]);
  const atC = device.address(out);
  const table = pairs.map(
    ([i, j], k) => [atA + i * rows * depth * 4, atB + j * depth * columns * 4, atC + k * rows * columns * 4] as const,
  );
  multiplyBatch(device, table, left, right, { rows, columns, depth });
  return out;
}

/** The product, then its bias and activation. */
const fusedMatMul = (
  device: WasmDevice,
  { bias, preluActivationWeights, ...operands }: FusedOperands,
  attributes: FusedAttributes,
): TensorInfo => finish(device, matMul(device, operands, attributes), { bias, preluActivationWeights }, attributes);

type FusedOperands = Operands & Tail;
type FusedAttributes = Transposed & TailAttributes;
