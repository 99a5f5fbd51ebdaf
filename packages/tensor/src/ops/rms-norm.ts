import { mean, mul, square, rsqrt, add, sub, sum, type Tensor, type Tensor1D, type Tensor2D } from '../tfjs.ts';
import { runOp, withGradient, withGradients, type Op } from '../op.ts';

/** Inputs x [rows, width], weight [width]. Output [y]. */
export const rmsNormOp: Op<{ x: Tensor; weight: Tensor }, { eps: number }> = {
  kernelName: 'NiwakiRmsNorm',
  reference: ({ x, weight }, { eps }) => [mul(mul(x, reciprocalRms(x, eps)), weight)],
};

/** Inputs x, delta [rows, width], weight [width]. Outputs [x + delta, y], y the norm of the sum. */
export const addRmsNormOp: Op<{ x: Tensor; delta: Tensor; weight: Tensor }, { eps: number }> = {
  kernelName: 'NiwakiAddRmsNorm',
  reference: ({ x, delta, weight }, { eps }) => {
    const total = add(x, delta);
    return [total, ...rmsNormOp.reference({ x: total, weight }, { eps })];
  },
};

/**
 * Inputs dy, x [rows, width], weight [width], and where x goes on beside its norm the gradient from there, beside [rows, width],
 * which is added. Outputs [dx] and, when `weightGradient`, dweight [width].
 */
export const rmsNormGradOp: Op<{ dy: Tensor; x: Tensor; weight: Tensor; beside?: Tensor }, { eps: number; weightGradient: boolean }> = {
  kernelName: 'NiwakiRmsNormGrad',
  reference: ({ dy, x, weight, beside }, { eps, weightGradient }) => {
    const r = reciprocalRms(x, eps);
    const normalized = mul(x, r);
    const scaled = mul(dy, weight);
    // d/dx of x·r(x)·w: the second term is the change of the norm itself.
    const own = mul(r, sub(scaled, mul(normalized, mean(mul(scaled, normalized), -1, true))));
    const dx = beside === undefined ? own : add(beside, own);
    return weightGradient ? [dx, sum(mul(dy, normalized), 0)] : [dx];
  },
};

const valueOf = (x: Tensor, weight: Tensor, eps: number): Tensor => runOp(rmsNormOp, { x, weight }, { eps })[0]!;

const reciprocalRms = (x: Tensor, eps: number): Tensor => rsqrt(add(mean(square(x), -1, true), eps));

/**
 * Root-mean-square normalization over the last axis: weight · x / sqrt(mean(x²) + eps) (Zhang & Sennrich 2019, eq. 4).
 * Saves x (and the weight, shared); the statistics are computed again in the backward pass.
 * @param x [rows, width] f32
 * @param weight [width] f32
 */
export function rmsNorm(
  x: Tensor2D,
  weight: Tensor1D,
  { eps, weightGradient = true }: { eps: number; weightGradient?: boolean },
): Tensor2D {
  return withGradient(
    weightGradient ? [x, weight] : [x],
    (save) => {
      // The weight too, though it is shared: read through a view it may be a tensor of this pass alone.
      save([x, weight]);
      return valueOf(x, weight, eps);
    },
    (dy, [savedX, savedWeight]) => runOp(rmsNormGradOp, { dy, x: savedX!, weight: savedWeight! }, { eps, weightGradient }),
    { remake: ([savedX, savedWeight]) => valueOf(savedX!, savedWeight!, eps) },
  ) as Tensor2D;
}

/**
 * Where a branch leaves a residual stream: x, with what the branch before it adds, and the norm of that, as one node of the
 * tape. What comes back along the stream and through the norm is added where it meets.
 * Saves the sum (shared with the stream) and the weight.
 * @param x [rows, width] f32
 * @param delta [rows, width] f32; undefined where nothing is added
 * @param weight [width] f32
 */
export function residualNorm(
  x: Tensor2D,
  delta: Tensor2D | undefined,
  weight: Tensor1D,
  { eps, weightGradient = true }: { eps: number; weightGradient?: boolean },
): { readonly stream: Tensor2D; readonly normed: Tensor2D } {
  const terms = delta === undefined ? [x] : [x, delta];
  const [stream, normed] = withGradients(
    weightGradient ? [...terms, weight] : terms,
    (save) => {
      const [total, y] = delta === undefined ? [x.clone(), valueOf(x, weight, eps)] : runOp(addRmsNormOp, { x, delta, weight }, { eps });
      save([total!, weight]);
      return [total!, y!];
    },
    ([beside, dy], [savedX, savedWeight]) => {
      const inputs = { dy: dy!, x: savedX!, weight: savedWeight!, beside: beside! };
      const [dx, ...dweight] = runOp(rmsNormGradOp, inputs, { eps, weightGradient });
      return [...terms.map(() => dx!), ...dweight];
    },
    // A kernel that adds rounds the sum before it takes its norm: the norm of the saved sum is the same.
    { remake: [undefined, ([savedX, savedWeight]) => valueOf(savedX!, savedWeight!, eps)] },
  );
  return { stream: stream as Tensor2D, normed: normed as Tensor2D };
}
