import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import { Cumprod, Cumsum, util, type TensorInfo } from '@tensorflow/tfjs-core';
import { dispatch } from '../dispatch.ts';
import type { Kernel } from '../kernel.ts';
import { fold } from '../program.ts';
import { scanProgram, type Scan } from './scan.wgsl.ts';

const scan = (kernelName: string, combine: Scan['combine']): Kernel => ({
  kernelName,
  kernelFunc: ({ inputs, attrs, backend }) => {
    const { x } = inputs as { x: TensorInfo };
    const { axis, exclusive, reverse } = attrs as unknown as { axis: number; exclusive: boolean; reverse: boolean };
    const at = util.parseAxisParam(axis, x.shape)[0]!;
    const product = (sides: readonly number[]): number => sides.reduce((size, side) => size * side, 1);
    const inner = product(x.shape.slice(at + 1));
    const lines = product(x.shape.slice(0, at)) * inner;
    return dispatch(backend as WebGPUBackend, scanProgram({ combine, type: x.dtype === 'int32' ? 'i32' : 'f32', exclusive, reverse }), {
      inputs: { x },
      outputs: { y: { shape: x.shape, dtype: x.dtype } },
      uniforms: { lines, length: x.shape[at]!, inner },
      groups: fold(lines),
    }).y;
  },
});

/**
 * tfjs bakes the length of the axis into these shaders and leaves it out of the name they are cached by: a reversed scan
 * of another length than the first one is silently wrong.
 */
export const cumsumKernel: Kernel = scan(Cumsum, 'sum');
export const cumprodKernel: Kernel = scan(Cumprod, 'product');
