import { sumSquaresOp } from '@niwaki/tensor';
import { kernelOf, type Kernel } from '../kernel.ts';
import { reduceAll } from './reduce-all.ts';
import { sumOfParts, sumOfSquares } from './sum-squares.wgsl.ts';

export const sumSquaresKernel: Kernel = kernelOf(sumSquaresOp, ({ x }, _, backend) => [
  reduceAll(backend, x, [sumOfSquares, sumOfParts], 8192),
]);
