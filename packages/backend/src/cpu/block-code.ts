import type { MathBackendCPU } from '@tensorflow/tfjs-backend-cpu';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import { bytesOf, dequantizeBlocksOp, quantizeBlocksOp } from '@niwaki/tensor';
import { decodeBlocks, encodeBlocks, type BlockCodeAttributes } from '../block-code.ts';
import { valuesOf } from './mat-mul.ts';

export const quantizeBlocksKernel: KernelConfig = {
  kernelName: quantizeBlocksOp.kernelName,
  backendName: 'cpu',
  kernelFunc: ({ inputs, attrs, backend }) => {
    const cpu = backend as MathBackendCPU;
    const attributes = attrs as unknown as BlockCodeAttributes & { guard: boolean };
    const values = valuesOf(cpu, inputs['x'] as TensorInfo) as Float32Array;
    const words = new Int32Array(Math.ceil(values.length / 4));
    const scales = new Float32Array(Math.ceil(values.length / attributes.blockSize));
    encodeBlocks(values, bytesOf(words), scales, attributes);
    return [cpu.makeTensorInfo([words.length], 'int32', words), cpu.makeTensorInfo([scales.length], 'float32', scales)];
  },
};

export const dequantizeBlocksKernel: KernelConfig = {
  kernelName: dequantizeBlocksOp.kernelName,
  backendName: 'cpu',
  kernelFunc: ({ inputs, attrs, backend }) => {
    const cpu = backend as MathBackendCPU;
    const { words, scales } = inputs as { words: TensorInfo; scales: TensorInfo };
    const attributes = attrs as unknown as BlockCodeAttributes & { length: number };
    const values = new Float32Array(attributes.length);
    decodeBlocks(bytesOf(valuesOf(cpu, words)), valuesOf(cpu, scales) as Float32Array, values, attributes);
    return [cpu.makeTensorInfo([values.length], 'float32', values)];
  },
};
