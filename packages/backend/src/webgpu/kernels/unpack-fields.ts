import { unpackFieldsOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { unpackFields } from './unpack-fields.wgsl.ts';

/** Not for speed alone: tfjs computes whole numbers in f32 on WebGPU, which takes no word apart. */
export const unpackFieldsKernel: Kernel = kernelOf(unpackFieldsOp, ({ words }, { bits, count }, backend) => {
  const outputs = { fields: { shape: [count], dtype: 'float32' as const } };
  return [dispatch(backend, unpackFields, { inputs: { words }, outputs, uniforms: { count, bits }, groups: fold(count, lanes) }).fields];
});
