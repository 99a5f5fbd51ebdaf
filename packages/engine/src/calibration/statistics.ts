import { abs, add, div, dispose, matMul, max, maximum, mul, sum, tidy, zeros, type Tensor1D, type Tensor2D } from '@niwaki/tensor';
import type { Site } from '@niwaki/nn';
import type { Collector, CountedRows } from './collector.ts';

const widthOf = (site: Site): number => site.weight!.shape[1];
const counted = (x: Tensor2D, { mask }: CountedRows): Tensor2D => (mask === undefined ? x : mul(x, mask));

/** XᵀX / rows of an input, f32 [in, in]: the Hessian of the squared output error, up to a factor. 4 · in² bytes while the window lasts. */
export function inputGram(): Collector<Tensor2D> {
  return {
    init: (site) => ({ sum: zeros([widthOf(site), widthOf(site)]) }),
    update: ({ sum: before }, x, rows) => ({ sum: add(before!, matMul(counted(x, rows), x, true, false)) }),
    finish: ({ sum: total }, count) => mean<Tensor2D>(total as Tensor2D, count),
    release: dispose,
  };
}

/** Mean of |x| by column of an input, f32 [in]. */
export function inputAbsMean(): Collector<Tensor1D> {
  return {
    init: (site) => ({ sum: zeros([widthOf(site)]) }),
    update: ({ sum: before }, x, rows) => ({ sum: add(before!, sum(abs(counted(x, rows)), 0)) }),
    finish: ({ sum: total }, count) => mean<Tensor1D>(total as Tensor1D, count),
    release: dispose,
  };
}

/** The largest |x| of each column of an input, f32 [in]. */
export function inputAbsMax(): Collector<Tensor1D> {
  return {
    init: (site) => ({ most: zeros([widthOf(site)]) }),
    update: ({ most: before }, x, rows) => ({ most: maximum(before!, max(abs(counted(x, rows)), 0)) }),
    finish: ({ most }) => most as Tensor1D,
    release: dispose,
  };
}

function mean<T extends Tensor1D | Tensor2D>(total: T, count: number): T {
  const result = tidy(() => div(total, count)) as T;
  total.dispose();
  return result;
}
