import type { Parameter } from '@niwaki/tensor';
import { scaleByLion } from '@niwaki/optim';
import { sizeOf } from '../../testing/src/contract-model.ts';
import { transformContract } from '../../testing/src/transform-contract.ts';
import { frugal, galore } from '../src/index.ts';

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

/** A quarter of the columns: an index, and moments for it. */
const split =
  (density: number, tensors: number) =>
  ({ shape, role }: Parameter): number => {
    if (role !== 'matrix') return 4 * tensors * sizeOf(shape);
    const count = Math.floor(shape[1]! * density);
    return 4 * (count + tensors * shape[0]! * count);
  };

transformContract('frugal', { make: () => frugal({ learningRate: 1, every: 5 }), stateBytes: split(0.25, 2), rate: 0.003 });
transformContract('frugal without state', { make: () => frugal({ learningRate: 1, density: 0 }), stateBytes: split(0, 2), rate: 0.003 });
transformContract('frugal of singular vectors', {
  make: () => frugal({ learningRate: 1, every: 5, split: 'singular' }),
  stateBytes: ({ shape, role }) => {
    if (role !== 'matrix') return 8 * sizeOf(shape);
    const [small, large] = [Math.min(...shape), Math.max(...shape)];
    return 4 * (small + 2 * large) * Math.round(small / 4);
  },
  rate: 0.003,
  reaches: 0.1,
});
