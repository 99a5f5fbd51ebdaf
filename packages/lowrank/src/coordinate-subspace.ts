import {
  distinctNumbers,
  gather,
  mul,
  reshape,
  scatterND,
  sub,
  tensor1d,
  transpose,
  zeros,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import type { State } from '@niwaki/optim';
import type { Subspace } from './subspace.ts';

export type Coordinates = 'columns' | 'rows' | 'entries';

/**
 * Some columns, rows or single entries of a matrix, drawn by chance: nothing is multiplied, and what is left out of a
 * gradient is exactly 0 inside. Its place is `count` int32 numbers.
 */
export function coordinateSubspace(
  [rows, columns]: readonly [number, number],
  { over, count }: { over: Coordinates; count: number },
): Subspace {
  const total = { columns, rows, entries: rows * columns }[over];
  const lines = (matrix: Tensor2D): Tensor2D =>
    (over === 'columns' ? transpose(matrix) : over === 'entries' ? reshape(matrix, [total, 1]) : matrix) as Tensor2D;
  const back = (spread: Tensor2D): Tensor2D => (over === 'columns' ? transpose(spread) : reshape(spread, [rows, columns])) as Tensor2D;
  const width = { columns: rows, rows: columns, entries: 1 }[over];
  const indexOf = (at: State): Tensor1D => at['index'] as Tensor1D;
  const spread = (chosen: Tensor2D, at: State): Tensor2D =>
    back(scatterND(reshape(indexOf(at), [count, 1]), chosen, [total, width]) as Tensor2D);
  return {
    shape: over === 'columns' ? [rows, count] : [count, width],
    initial: () => ({ index: zeros([count], 'int32') }),
    choose: async (_, address) => ({ index: tensor1d(distinctNumbers(total, count, address), 'int32') }),
    down: (gradient, at) => {
      if (over === 'columns') return gather(gradient, indexOf(at), 1) as Tensor2D;
      return gather(lines(gradient), indexOf(at)) as Tensor2D;
    },
    up: (small, at) => spread(over === 'columns' ? (transpose(small) as Tensor2D) : small, at),
    rest: (gradient, at) => {
      const taken = scatterND(reshape(indexOf(at), [count, 1]), tensor1d(new Float32Array(count).fill(1)), [total]);
      const kept = sub(1, taken);
      if (over === 'columns') return mul(gradient, kept);
      return mul(gradient, reshape(kept, over === 'rows' ? [rows, 1] : [rows, columns]));
    },
  };
}
