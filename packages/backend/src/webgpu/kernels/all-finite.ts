import { allFiniteOp } from '@niwaki/tensor';
import { kernelOf, sizeOf, type Kernel } from '../kernel.ts';
import { finiteBits, finiteFlags } from './all-finite.wgsl.ts';
import { reduceAll } from './reduce-all.ts';

export const allFiniteKernel: Kernel = kernelOf(allFiniteOp, ({ x }, _, backend) => [
  sizeOf(x) === 0 ? backend.makeTensorInfo([], 'float32', new Float32Array([1])) : reduceAll(backend, x, [finiteBits, finiteFlags], 4096),
]);
