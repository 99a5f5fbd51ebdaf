import type { MathBackendCPU } from '@tensorflow/tfjs-backend-cpu';
import type { KernelConfig, TensorInfo } from '@tensorflow/tfjs-core';
import { bytesOf, decodePacked, packedMatMulOp, packedRowsOp, type PackedParts, type PackedShape } from '@niwaki/tensor';
import { valuesOf } from './mat-mul.ts';
import { addScaledRows, multiply } from './products.ts';

/** Rows of W decoded at a time: enough to amortize a pass over x, few enough to stay in the cache. */
const tileRows = 16;

/** x·Wᵀ, or x·W, with only a tile of W ever decoded. */
export const packedMatMulKernel: KernelConfig = {
  kernelName: packedMatMulOp.kernelName,
  backendName: 'cpu',
  kernelFunc: ({ inputs, attrs, backend }) => {
    const { x, ...stored } = inputs as unknown as { x: TensorInfo } & Record<string, TensorInfo>;
    const { transposed, ...shape } = attrs as unknown as PackedShape & { transposed: boolean };
    const cpu = backend as MathBackendCPU;
    const parts = partsOf(cpu, stored);
    const rows = x.shape[0]!;
    const width = transposed ? shape.in : shape.out;
    const out = new Float32Array(rows * width);
    const tile = new Float32Array(tileRows * shape.in);
    const values = valuesOf(cpu, x);
    for (let first = 0; first < shape.out; first += tileRows) {
      const count = Math.min(tileRows, shape.out - first);
      decodePacked(shape, parts, first * shape.in, count * shape.in, tile);
      if (transposed) {
        const left = { values, at: first, outer: shape.out, inner: 1 };
        const right = { values: tile, at: 0, outer: 1, inner: shape.in };
        addScaledRows(left, right, { values: out, at: 0, ld: width }, { rows, columns: shape.in, terms: count });
      } else {
        const left = { values, at: 0, outer: shape.in, inner: 1 };
        const right = { values: tile, at: 0, outer: shape.in, inner: 1 };
        multiply(left, right, { values: out, at: first, ld: width }, { rows, columns: count, terms: shape.in });
      }
    }
    return cpu.makeTensorInfo([rows, width], 'float32', out);
  },
};

/** Rows by id, straight from the packed bytes. */
export const packedRowsKernel: KernelConfig = {
  kernelName: packedRowsOp.kernelName,
  backendName: 'cpu',
  kernelFunc: ({ inputs, attrs, backend }) => {
    const { ids, ...stored } = inputs as unknown as { ids: TensorInfo } & Record<string, TensorInfo>;
    const shape = attrs as unknown as PackedShape;
    const cpu = backend as MathBackendCPU;
    const parts = partsOf(cpu, stored);
    const index = valuesOf(cpu, ids);
    const out = new Float32Array(index.length * shape.in);
    for (let i = 0; i < index.length; i++) decodePacked(shape, parts, index[i]! * shape.in, shape.in, out, i * shape.in);
    return cpu.makeTensorInfo([index.length, shape.in], 'float32', out);
  },
};

function partsOf(cpu: MathBackendCPU, stored: Record<string, TensorInfo>): PackedParts {
  const entries = Object.entries(stored).map(([name, info]) => {
    const values = valuesOf(cpu, info);
    return [name, info.dtype === 'int32' ? bytesOf(values) : values] as const;
  });
  return Object.fromEntries(entries) as PackedParts;
}
