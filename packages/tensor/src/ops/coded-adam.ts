import { ShapeError } from '../errors.ts';
import { heldOnce, runOp, type Op } from '../op.ts';
import { concat, reshape, slice, tidy, type Scalar, type Tensor, type Tensor1D } from '../tfjs.ts';
import { adamOp, type AdamAttributes } from './adam.ts';
import { blockChunks } from './block-chunks.ts';
import { checkBlocks, checkBlockSize, dequantizeBlocksOp, quantizeBlocksOp, type BlockQuantized } from './block-quantize.ts';
import { choose } from './choose.ts';

export interface CodedAdamInputs {
  gradient: Tensor;
  momentumWords: Tensor;
  momentumScales: Tensor;
  varianceWords: Tensor;
  varianceScales: Tensor;
  /** f32 [3]: the two bias corrections and `ok`. In one, since a WebGPU device may bind no more than ten tensors. */
  factors: Tensor;
  [name: string]: Tensor;
}

export interface CodedAdamAttributes extends AdamAttributes {
  readonly blockSize: number;
  /** No second moment above 0 is stored as 0. */
  readonly guard: boolean;
}

/**
 * One step of `adamOp` on moments in 8 bits, the first with signs: outputs [direction f32 of the gradient's shape, words and
 * scales of the first moment, words and scales of the second]. The direction is made from the new moments before they are
 * rounded. Where `ok` is 0 the words and scales are the old ones, bit for bit, and the direction means nothing.
 * `overwrite`: as in `adamOp`, for the gradient, the words and the scales.
 */
export const codedAdamOp: Op<CodedAdamInputs, CodedAdamAttributes & { overwrite: boolean }> = {
  kernelName: 'NiwakiCodedAdam',
  reference: ({ gradient, factors, ...coded }, { beta1, beta2, eps, blockSize, guard }) => {
    const [correction1, correction2, ok] = [0, 1, 2].map((i) => reshape(slice(factors as Tensor1D, [i], [1]), [])) as [
      Scalar,
      Scalar,
      Scalar,
    ];
    const flat = reshape(gradient, [gradient.size]) as Tensor1D;
    const parts = blockChunks(gradient.size, blockSize).map(({ from, count }) =>
      tidy(() => {
        const decoded = (words: Tensor, scales: Tensor, signed: boolean): Tensor => {
          const own = {
            words: slice(words as Tensor1D, [from / 4], [Math.ceil(count / 4)]),
            scales: slice(scales as Tensor1D, [from / blockSize], [Math.ceil(count / blockSize)]),
          };
          return runOp(dequantizeBlocksOp, own, { signed, blockSize, length: count })[0]!;
        };
        const moments = {
          momentum: decoded(coded.momentumWords!, coded.momentumScales!, true),
          variance: decoded(coded.varianceWords!, coded.varianceScales!, false),
        };
        const given = { gradient: slice(flat, [from], [count]), ...moments, correction1, correction2, ok };
        const [direction, momentum, variance] = runOp(adamOp, given, { beta1, beta2, eps, overwrite: false }) as [Tensor, Tensor, Tensor];
        const encoded = (x: Tensor, signed: boolean): Tensor[] => runOp(quantizeBlocksOp, { x }, { signed, blockSize, guard });
        return [direction, ...encoded(momentum, true), ...encoded(variance, false)];
      }),
    );
    const [direction, ...made] = [0, 1, 2, 3, 4].map((i) => concat(parts.map((part) => part[i]!))) as [Tensor, ...Tensor[]];
    // Codes of old moments need not be the old codes.
    const old = [coded.momentumWords, coded.momentumScales, coded.varianceWords, coded.varianceScales];
    return [reshape(direction, gradient.shape), ...made.map((next, i) => choose(ok, next, old[i]!))];
  },
};

/**
 * Adam's direction and its new moments, from and to moments in 8 bits (Dettmers et al. 2022): a block at a time, with no f32
 * copy of them. Memory: the direction and the new codes. Not differentiable.
 * @param factors f32 [3]: correction1, correction2, ok; see `adamOp`
 * @param options `owned`: as in `adamStep`, with no memory at all on wasm and WebGPU
 * @throws ShapeError where words or scales are not those of moments of the gradient's shape
 */
export function codedAdamStep(
  gradient: Tensor,
  { momentum, variance }: { readonly momentum: BlockQuantized; readonly variance: BlockQuantized },
  factors: Tensor,
  { owned = false, ...attributes }: CodedAdamAttributes & { readonly owned?: boolean },
): { direction: Tensor; momentum: BlockQuantized; variance: BlockQuantized } {
  checkBlockSize(attributes.blockSize);
  if (gradient.dtype !== 'float32' || gradient.size === 0) {
    throw new ShapeError(`codedAdamStep takes f32 with at least one entry, got ${gradient.dtype} [${gradient.shape}]`, {
      given: gradient.shape,
      dtype: gradient.dtype,
    });
  }
  for (const moment of [momentum, variance]) checkBlocks(moment, gradient.shape, attributes.blockSize);
  const written = {
    gradient,
    momentumWords: momentum.words,
    momentumScales: momentum.scales,
    varianceWords: variance.words,
    varianceScales: variance.scales,
  };
  const overwrite = owned && heldOnce(...Object.values(written));
  const [direction, ...made] = runOp(codedAdamOp, { ...written, factors }, { ...attributes, overwrite }) as [
    Tensor,
    Tensor1D,
    Tensor1D,
    Tensor1D,
    Tensor1D,
  ];
  return { direction, momentum: { words: made[0], scales: made[1] }, variance: { words: made[2], scales: made[3] } };
}
