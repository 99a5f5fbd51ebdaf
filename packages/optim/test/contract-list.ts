import type { Parameter } from '@niwaki/tensor';
import { sizeOf } from '../../testing/src/contract-model.ts';
import type { TransformCase } from '../../testing/src/transform-contract.ts';
import { adamw, agedAdamw, lion, sgd, sm3 } from '../src/index.ts';

// One line an optimizer: the contract suite of this package and the composition matrix of all packages run what is listed.

const f32 =
  (tensors: number) =>
  ({ shape }: Parameter): number =>
    4 * tensors * sizeOf(shape);
/** The tiny model's matrices are below the default bound. */
const state = { minSize: 256, blockSize: 64 };
const bytes =
  (tensors: number) =>
  ({ shape }: Parameter): number => {
    const size = sizeOf(shape);
    return size < 256 ? 4 * tensors * size : tensors * (size + 4 * Math.ceil(size / 64));
  };

/** A number a row and one a column; of a vector one an entry. */
const sides = ({ shape }: Parameter): number => 4 * shape.reduce((sum, side) => sum + side, 0);

export const optimizers: Readonly<Record<string, TransformCase>> = {
  sgd: { make: () => sgd({ learningRate: 1 }), stateBytes: () => 0, rate: 0.1 },
  'sgd with momentum': { make: () => sgd({ learningRate: 1, momentum: 0.9 }), stateBytes: f32(1), rate: 0.02 },
  'sgd with momentum, 8 bits': { make: () => sgd({ learningRate: 1, momentum: 0.9, state }), stateBytes: bytes(1), rate: 0.02 },
  adamw: { make: () => adamw({ learningRate: 1, weightDecay: 0 }), stateBytes: f32(2) },
  'adamw, 8 bits': { make: () => adamw({ learningRate: 1, weightDecay: 0, state }), stateBytes: bytes(2) },
  agedAdamw: { make: () => agedAdamw({ learningRate: 1 }), stateBytes: f32(3) },
  'agedAdamw, 8 bits': {
    make: () => agedAdamw({ learningRate: 1, state }),
    stateBytes: (parameter) => bytes(2)(parameter) + f32(1)(parameter),
  },
  sm3: { make: () => sm3({ learningRate: 1 }), stateBytes: sides, rate: 0.05 },
  'sm3 with momentum': {
    make: () => sm3({ learningRate: 1, momentum: 0.9 }),
    stateBytes: (parameter) => sides(parameter) + f32(1)(parameter),
    rate: 0.05,
  },
  lion: { make: () => lion({ learningRate: 1 }), stateBytes: f32(1), rate: 0.003 },
  'lion, 8 bits': { make: () => lion({ learningRate: 1, state }), stateBytes: bytes(1), rate: 0.003 },
};
