import { unwrittenOp } from '@niwaki/tensor';
import { kernelOf, type Kernel } from '../kernel.ts';

/** A buffer as it is found, when something binds it. */
export const unwrittenKernel: Kernel = kernelOf(unwrittenOp, (_, { shape }, backend) => [backend.makeTensorInfo([...shape], 'float32')]);
