import { runOp, type Op } from '../op.ts';
import {
  abs,
  add,
  cast,
  clipByValue,
  div,
  exp,
  floor,
  greater,
  greaterEqual,
  less,
  lessEqual,
  logicalAnd,
  mul,
  neg,
  pow,
  reshape,
  sign,
  sub,
  sum,
  tidy,
  type Tensor,
  type Tensor1D,
} from '../tfjs.ts';

/** Where each entry of a matrix stands between two codes; `logits` say which of them it leans to. */
export interface SoftRoundInputs {
  /** f32 of any shape, its groups one after another. */
  w: Tensor;
  /** f32 of the same shape: what is added to the logit that stands for w itself. */
  logits: Tensor;
  /** f32 [groups], above 0. */
  scales: Tensor;
  [name: string]: Tensor;
}

export interface SoftCodesInputs extends SoftRoundInputs {
  /** f32 [groups]: the code that stands for 0. */
  zeros: Tensor;
}

/** Ends of the rectified sigmoid (Louizos et al. 2018): both 0 and 1 are reached. */
const [high, low] = [1.1, -0.1];
/** A fraction within this of 0 or 1 starts from here: at 0 and 1 themselves no gradient would move it. */
const margin = 1e-4;

/** Output [s · (clamp(⌊w/s⌋ + h + zero, 0, most) - zero)], h in [0, 1] as `roundedUp` gives it. */
export const softRoundOp: Op<SoftCodesInputs, { readonly most: number }> = {
  kernelName: 'NiwakiSoftRound',
  reference: ({ w, ...given }, { most }) => {
    const { scale, offset } = codesOf(standing({ w, ...given }), given, most);
    return [reshape(mul(scale, offset), w.shape)];
  },
};

/** Inputs those of `softRoundOp` and dy. Outputs [dscales, dlogits]; ⌊·⌋ counts as the identity. */
export const softRoundGradOp: Op<SoftCodesInputs & { dy: Tensor }, { readonly most: number }> = {
  kernelName: 'NiwakiSoftRoundGrad',
  reference: ({ dy, ...given }, { most }) => {
    const state = standing(given);
    const { scale, level, offset } = codesOf(state, given, most);
    const d = reshape(dy, state.place.shape);
    const inside = tidy(() => cast(logicalAnd(greaterEqual(level, 0), lessEqual(level, most)), 'float32'));
    const dscales = tidy(() => sum(mul(d, sub(offset, mul(inside, state.place))), 1));
    const dlogits = tidy(() =>
      mul(
        tidy(() => mul(mul(d, scale), inside)),
        slope(state),
      ),
    );
    return [dscales, reshape(dlogits, given.logits.shape)];
  },
};

/** Output [f32 [groups]: the sum over each group of 1 - |2h - 1|^sharpness]. `sharpness` above 1. */
export const undecidedOp: Op<SoftRoundInputs, { readonly sharpness: number }> = {
  kernelName: 'NiwakiUndecided',
  reference: (given, { sharpness }) => {
    const { up } = standing(given);
    return [tidy(() => sum(sub(1, pow(abs(centered(up)), sharpness)), 1))];
  },
};

/** Inputs those of `undecidedOp` and dy [groups]. Output [dlogits]. */
export const undecidedGradOp: Op<SoftRoundInputs & { dy: Tensor }, { readonly sharpness: number }> = {
  kernelName: 'NiwakiUndecidedGrad',
  reference: ({ dy, ...given }, { sharpness }) => {
    const state = standing(given);
    const steep = tidy(() => {
      const c = centered(state.up);
      return mul(mul(pow(abs(c), sharpness - 1), sign(c)), -2 * sharpness);
    });
    return [reshape(mul(mul(steep, slope(state)), reshape(dy, [-1, 1])), given.logits.shape)];
  },
};

/**
 * A matrix that is not yet rounded: value = s · (clamp(⌊w/s⌋ + h + zero, 0, most) - zero), with h the rectified sigmoid of
 * V₀ + logits (AdaRound, Nagel et al. 2020). V₀ follows from w and s, so that logits of 0 give w itself wherever its group
 * reaches. Memory: the result. Not differentiable: see `softRoundGradient`.
 * @param most the highest code
 */
export const softRound = (inputs: SoftCodesInputs, most: number): Tensor => runOp(softRoundOp, inputs, { most })[0]!;

/** Gradients of `softRound` for its scales [groups] and logits, from dy of w's shape. Memory: the results. */
export function softRoundGradient(dy: Tensor, inputs: SoftCodesInputs, most: number): { scales: Tensor1D; logits: Tensor } {
  const [scales, logits] = runOp(softRoundGradOp, { dy, ...inputs }, { most }) as [Tensor1D, Tensor];
  return { scales, logits };
}

/** h: how far each entry is rounded up from the code below, in [0, 1], of w's shape. */
export const roundedUp = (inputs: SoftRoundInputs): Tensor => tidy(() => reshape(standing(inputs).up, inputs.w.shape));

/** Whole codes, of w's shape in f32: an h of half or more goes up. */
export const settledCodes = (inputs: SoftCodesInputs, most: number): Tensor =>
  tidy(() => {
    const { place, up } = standing(inputs);
    const whole = add(belowOf(place, inputs.zeros), cast(greaterEqual(up, 0.5), 'float32'));
    return reshape(clipByValue(whole, 0, most), inputs.w.shape);
  });

/** The logit for which an entry that stands at `fraction` between two codes is rounded up by `up`; both in [0, 1]. On the host. */
export const roundingLogit = (fraction: number, up: number): number => gateLogit(up) - gateLogit(fraction);

function gateLogit(h: number): number {
  const inside = Math.min(Math.max(h, margin), 1 - margin);
  return Math.log((inside - low) / (high - inside));
}

/** Groups as rows: [groups, groupSize] each. */
interface Standing {
  /** w / s */
  readonly place: Tensor;
  /** The sigmoid before it is stretched. */
  readonly gate: Tensor;
  /** h */
  readonly up: Tensor;
}

/** A tidy for each step: of about ten tensors as large as the matrix, only those still needed are alive together. */
const standing = ({ w, logits, scales }: SoftRoundInputs): Standing =>
  tidy(() => {
    const place = div(reshape(w, [scales.size, -1]), reshape(scales, [-1, 1]));
    const gate = tidy(() => {
      const fraction = tidy(() => clipByValue(sub(place, floor(place)), margin, 1 - margin));
      // σ(V₀ + V) for V₀ = -ln((high - low) / (fraction - low) - 1), without its logarithm.
      const start = sub(fraction, low);
      const rest = tidy(() => mul(sub(high, fraction), exp(neg(reshape(logits, place.shape)))));
      return div(start, add(start, rest));
    });
    return { place, gate, up: tidy(() => clipByValue(add(mul(gate, high - low), low), 0, 1)) };
  });

/** The code below. */
const belowOf = (place: Tensor, zeros: Tensor): Tensor => tidy(() => add(floor(place), reshape(zeros, [-1, 1])));

/** ⌊w/s⌋ + h + zero, and what is left of it less the zero where it is cut to the codes there are. */
function codesOf(
  { place, up }: Standing,
  { scales, zeros }: Pick<SoftCodesInputs, 'scales' | 'zeros'>,
  most: number,
): { readonly scale: Tensor; readonly level: Tensor; readonly offset: Tensor } {
  const level = add(belowOf(place, zeros!), up);
  const offset = tidy(() => sub(clipByValue(level, 0, most), reshape(zeros!, [-1, 1])));
  return { scale: reshape(scales!, [-1, 1]), level, offset };
}

/** dh/dV: 0 where h is decided for good. */
const slope = ({ gate, up }: Standing): Tensor =>
  tidy(() => {
    const steep = tidy(() => mul(mul(gate, sub(1, gate)), high - low));
    return mul(steep, cast(logicalAnd(greater(up, 0), less(up, 1)), 'float32'));
  });

/** 2h - 1: -1 and 1 where an entry is decided. */
const centered = (up: Tensor): Tensor => sub(mul(up, 2), 1);
