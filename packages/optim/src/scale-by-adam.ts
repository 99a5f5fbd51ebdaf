import { adamStep, biasCorrection, checkFlag, div, mul, outOfRange, scalar, sqrt, zeros, type Scalar, type Tensor } from '@niwaki/tensor';
import { beginAt } from './begin-entries.ts';
import { dense, valueOf } from './dense-update.ts';
import type { Transform } from './transform.ts';

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

/**
 * The direction of Adam (Kingma & Ba 2015, algorithm 1), with bias correction by the number of applied updates.
 * State: two f32 tensors a parameter, 8 bytes an entry.
 */
export function scaleByAdam({ beta1 = 0.9, beta2 = 0.999, eps = 1e-8, correctLast = false }: AdamOptions = {}): Transform<{
  momentum: Tensor;
  variance: Tensor;
}> {
  for (const [name, beta] of [
    ['beta1', beta1],
    ['beta2', beta2],
  ] as const) {
    if (!(beta >= 0 && beta < 1)) throw outOfRange('adam', name, beta, 'in [0, 1)');
  }
  if (!(eps >= 0 && eps < Infinity)) throw outOfRange('adam', 'eps', eps, 'a finite number of at least 0');
  checkFlag('adam', 'correctLast', correctLast);
  return {
    name: 'adam',
    options: { beta1, beta2, eps, correctLast },
    layout: { momentum: { per: 'entry', signed: true }, variance: { per: 'entry', signed: false } },
    init: ({ shape }) => ({ momentum: zeros([...shape]), variance: zeros([...shape]) }),
    update: (gradient, { momentum, variance }, { updates, ok, once = (_, make) => make() }) => {
      const one = (): Scalar => once('one', () => scalar(1));
      const correction = (beta: number): Scalar => once(`bias correction ${beta}`, () => biasCorrection(beta, updates));
      const { direction, ...state } = adamStep(
        {
          gradient: valueOf(gradient),
          momentum,
          variance,
          correction1: correctLast ? one() : correction(beta1),
          correction2: correctLast ? one() : correction(beta2),
          ok: ok ?? one(),
        },
        { beta1, beta2, eps },
      );
      const corrected = correctLast ? mul(direction, div(sqrt(correction(beta2)), correction(beta1))) : direction;
      return { update: dense(corrected), state, gated: ok !== undefined };
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
