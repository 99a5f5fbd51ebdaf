import { runOp, type Op } from '../op.ts';
import { add, cast, equal, mul, range, reshape, slice, stack, sum, tidy, type Tensor, type Tensor1D, type Tensor2D } from '../tfjs.ts';
import { unpackFields } from './unpack-fields.ts';

/** n entries stored of every m; their places are fields of log2 m bits. */
export interface GroupsShape {
  readonly n: number;
  /** A power of two. */
  readonly m: number;
  readonly groups: number;
}

/** For each of the n slots of a group, 1 where the slot's entry is: f32 [groups, m]. */
function slots(words: Tensor, { n, m, groups }: GroupsShape): Tensor2D[] {
  const fields = reshape(unpackFields(words, { bits: Math.log2(m), count: groups * n }), [groups, n]);
  const places = reshape(range(0, m, 1, 'float32'), [1, m]);
  return Array.from({ length: n }, (_, slot) => cast(equal(slice(fields, [0, slot], [groups, 1]), places), 'float32') as Tensor2D);
}

/** Inputs values f32, groups · n of them, and words int32. Output [f32 [groups · m]]: values at their places, zeros elsewhere. */
export const expandGroupsOp: Op<{ values: Tensor; words: Tensor }, GroupsShape> = {
  kernelName: 'NiwakiExpandGroups',
  reference: ({ values, words }, shape) => {
    const { n, m, groups } = shape;
    const each = reshape(values, [groups, n]);
    const placed: Tensor[] = slots(words, shape).map((at, slot) => mul(at, slice(each, [0, slot], [groups, 1])));
    return [
      reshape(
        placed.reduce((total, part) => add(total, part)),
        [groups * m],
      ),
    ];
  },
};

/** Inputs dense f32, groups · m entries, and words int32. Output [f32 [groups · n]]: what is at those places. */
export const pickGroupsOp: Op<{ dense: Tensor; words: Tensor }, GroupsShape> = {
  kernelName: 'NiwakiPickGroups',
  reference: ({ dense, words }, shape) => {
    const { n, m, groups } = shape;
    const each = reshape(dense, [groups, m]);
    return [
      reshape(
        stack(
          slots(words, shape).map((at) => sum(mul(at, each), 1)),
          1,
        ),
        [groups * n],
      ),
    ];
  },
};

/** Values at their places in groups of m, zeros elsewhere. Not differentiable: `pickGroups` is its transpose. */
export const expandGroups = (values: Tensor, words: Tensor, shape: GroupsShape): Tensor1D =>
  tidy(() => runOp(expandGroupsOp, { values, words }, { ...shape })[0] as Tensor1D);

/** What groups of m hold at the stored places. */
export const pickGroups = (dense: Tensor, words: Tensor, shape: GroupsShape): Tensor1D =>
  tidy(() => runOp(pickGroupsOp, { dense, words }, { ...shape })[0] as Tensor1D);
