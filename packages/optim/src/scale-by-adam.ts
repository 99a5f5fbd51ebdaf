import {
  adamStep,
  biasCorrection,
  checkFlag,
  checkOptions,
  codedAdamStep,
  div,
  mul,
  outOfRange,
  scalar,
  sqrt,
  stack,
  zeros,
  type Scalar,
  type Tensor,
} from '@niwaki/tensor';
import { beginAt } from './begin-entries.ts';
import { dense, valueOf } from './dense-update.ts';
import type { Transform, UpdateContext } from './transform.ts';

export interface AdamOptions {
  /** Decay of the mean of gradients, in [0, 1); default 0.9. */
  readonly beta1?: number;
  /** Decay of the mean of their squares, in [0, 1); default 0.999. */
  readonly beta2?: number;
  /** Added to the root, default 1e-8. */
  readonly eps?: number;
  /** True: eps is added before the bias correction, as in GaLore's AdamW, which makes it larger in the first steps; default false, as in the paper. */
  readonly correctLast?: boolean;
}

export const adamNames = ['beta1', 'beta2', 'eps', 'correctLast'] as const;

/**
 * The direction of Adam (Kingma & Ba 2015, algorithm 1), with bias correction by the number of applied updates.
 * State: two f32 tensors a parameter, 8 bytes an entry. In a step the new ones take the memory of the old ones, and the
 * direction that of the gradient (wasm, WebGPU); elsewhere they are beside them, 12 bytes an entry.
 */
export function scaleByAdam(options: AdamOptions = {}): Transform<{ momentum: Tensor; variance: Tensor }> {
  checkOptions('adam', options, adamNames);
  const { beta1 = 0.9, beta2 = 0.999, eps = 1e-8, correctLast = false } = options;
  for (const [name, beta] of [
    ['beta1', beta1],
    ['beta2', beta2],
  ] as const) {
    if (!(beta >= 0 && beta < 1)) throw outOfRange('adam', name, beta, 'in [0, 1)');
  }
  if (!(eps >= 0 && eps < Infinity)) throw outOfRange('adam', 'eps', eps, 'a finite number of at least 0');
  checkFlag('adam', 'correctLast', correctLast);
  /** What the moments are divided by, whether the step holds, and what is left to do with the direction. */
  const factorsOf = ({ updates, ok, once = alone }: UpdateContext): Factors => {
    const one = (): Scalar => once('one', () => scalar(1));
    const correction = (beta: number): Scalar => once(`bias correction ${beta}`, () => biasCorrection(beta, updates));
    if (!correctLast) {
      return { correction1: correction(beta1), correction2: correction(beta2), ok: ok ?? one(), last: (direction) => direction };
    }
    const last = (direction: Tensor): Tensor => mul(direction, div(sqrt(correction(beta2)), correction(beta1)));
    return { correction1: one(), correction2: one(), ok: ok ?? one(), last };
  };
  return {
    name: 'adam',
    options: { beta1, beta2, eps, correctLast },
    layout: { momentum: { per: 'entry', signed: true }, variance: { per: 'entry', signed: false } },
    init: ({ shape }) => ({ momentum: zeros([...shape]), variance: zeros([...shape]) }),
    update: (gradient, { momentum, variance }, context) => {
      const { correction1, correction2, ok, last } = factorsOf(context);
      const inputs = { gradient: valueOf(gradient), momentum, variance, correction1, correction2, ok };
      const { direction, ...state } = adamStep(inputs, { beta1, beta2, eps, owned: context.owned ?? false });
      return { update: dense(last(direction)), state, gated: context.ok !== undefined };
    },
    updateCoded: (gradient, state, context, coding) => {
      const { correction1, correction2, ok, last } = factorsOf(context);
      // Another `ok` is another step's.
      const factors = (context.once ?? alone)(`adam ${beta1} ${beta2} ${correctLast} ${ok.id}`, () =>
        stack([correction1, correction2, ok]),
      );
      const settings = { beta1, beta2, eps, ...coding, owned: context.owned ?? false };
      const { direction, ...next } = codedAdamStep(valueOf(gradient), state, factors, settings);
      return { update: dense(last(direction)), state: next, gated: context.ok !== undefined };
    },
    // The count is the parameter's, so a new entry begins with what it turns into the means of its gradients.
    begin: ({ momentum, variance }, entries) => {
      const { mean, meanSquare } = entries.seen ?? {};
      const risen = (beta: number): number => -Math.expm1(entries.updates * Math.log(beta));
      return {
        momentum: beginAt(entries, momentum, mean && mul(mean, risen(beta1))),
        variance: beginAt(entries, variance, meanSquare && mul(meanSquare, risen(beta2))),
      };
    },
  };
}

interface Factors {
  readonly correction1: Scalar;
  readonly correction2: Scalar;
  readonly ok: Scalar;
  last(direction: Tensor): Tensor;
}

/** Outside a step nobody shares. */
const alone: NonNullable<UpdateContext['once']> = (_, make) => make();
