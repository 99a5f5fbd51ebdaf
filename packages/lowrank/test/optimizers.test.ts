import type { Parameter } from '@niwaki/tensor';
import { scaleByLion } from '@niwaki/optim';
import { sizeOf } from '../../testing/src/contract-model.ts';
import { transformContract } from '../../testing/src/transform-contract.ts';
import { galore } from '../src/index.ts';

/** Bytes of n numbers of state: f32, or from `minSize` on a byte each and a scale a block of 64. */
const coded = (size: number, minSize: number): number => (size < minSize ? 4 * size : size + 4 * Math.ceil(size / 64));

/** Basis of the smaller side, `tensors` moments of the larger; the rest whole. */
const projected =
  (rank: number, tensors: number, minSize = Infinity) =>
  ({ shape, role }: Parameter): number => {
    if (role !== 'matrix') return tensors * coded(sizeOf(shape), minSize);
    const [small, large] = [Math.min(...shape), Math.max(...shape)];
    return 4 * small * rank + tensors * coded(large * rank, minSize);
  };

transformContract('galore', {
  make: () => galore({ learningRate: 1, rank: 4, every: 5 }),
  stateBytes: projected(4, 2),
  rate: 0.04,
  reaches: 0.1,
});
transformContract('galore, 8 bits', {
  make: () => galore({ learningRate: 1, rank: 4, every: 5, state: { minSize: 64, blockSize: 64 } }),
  stateBytes: projected(4, 2, 64),
  rate: 0.04,
  reaches: 0.1,
});
transformContract('galore of lion', {
  make: () => galore({ learningRate: 1, rank: 4, every: 5, scale: 1, direction: scaleByLion() }),
  stateBytes: projected(4, 1),
  rate: 0.004,
  // Signs are taken in the subspace: what turns back to entries is no longer of one size.
  reaches: 0.2,
});
