import type { Parameter } from '@niwaki/tensor';
import { sizeOf } from '../../testing/src/contract-model.ts';
import { transformContract } from '../../testing/src/transform-contract.ts';
import { adamw, agedAdamw, lion, sgd, sm3 } from '../src/index.ts';

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

transformContract('sgd', { make: () => sgd({ learningRate: 1 }), stateBytes: () => 0, rate: 0.1 });
transformContract('sgd with momentum', { make: () => sgd({ learningRate: 1, momentum: 0.9 }), stateBytes: f32(1), rate: 0.02 });
transformContract('sgd with momentum, 8 bits', {
  make: () => sgd({ learningRate: 1, momentum: 0.9, state }),
  stateBytes: bytes(1),
  rate: 0.02,
});
transformContract('adamw', { make: () => adamw({ learningRate: 1, weightDecay: 0 }), stateBytes: f32(2) });
transformContract('adamw, 8 bits', { make: () => adamw({ learningRate: 1, weightDecay: 0, state }), stateBytes: bytes(2) });
transformContract('agedAdamw', { make: () => agedAdamw({ learningRate: 1 }), stateBytes: f32(3) });
transformContract('agedAdamw, 8 bits', {
  make: () => agedAdamw({ learningRate: 1, state }),
  stateBytes: (parameter) => bytes(2)(parameter) + f32(1)(parameter),
});
transformContract('sm3', {
  make: () => sm3({ learningRate: 1 }),
  stateBytes: ({ shape: [rows, columns] }) => 4 * (rows! + (columns ?? 0)),
  rate: 0.05,
});
transformContract('sm3 with momentum', {
  make: () => sm3({ learningRate: 1, momentum: 0.9 }),
  stateBytes: (parameter) => f32(1)(parameter) + 4 * parameter.shape.reduce((sum, side) => sum + side, 0),
  rate: 0.05,
});
transformContract('lion', { make: () => lion({ learningRate: 1 }), stateBytes: f32(1), rate: 0.003 });
transformContract('lion, 8 bits', { make: () => lion({ learningRate: 1, state }), stateBytes: bytes(1), rate: 0.003 });
