import { add, checkOptions, div, expm1, fill, mul, neg, ones, outOfRange, sqrt, square, tidy, zeros, type Tensor } from '@niwaki/tensor';
import { beginAt } from './begin-entries.ts';
import { dense, valueOf } from './dense-update.ts';
import type { Transform } from './transform.ts';

export interface AgedAdamOptions {
  /** Decay of the mean of gradients, in [0, 1); default 0.9. */
  readonly beta1?: number;
  /** Decay of the mean of their squares, in [0, 1); default 0.999. */
  readonly beta2?: number;
  /** Added to the root before the bias correction, default 1e-6. */
  readonly eps?: number;
}

export const agedAdamNames = ['beta1', 'beta2', 'eps'] as const;

/**
 * Adam whose bias correction counts each entry's own updates, for parameters whose entries come and go (SpIEL-AG,
 * 2401.16405): an entry that begins late is corrected as if it were the first step of all. An entry with gradients behind
 * it begins with moments that the correction turns into their means, and with the age of as many steps.
 * State: momentum, variance and age, 12 bytes an entry.
 */
export function scaleByAgedAdam(options: AgedAdamOptions = {}): Transform<{ momentum: Tensor; variance: Tensor; age: Tensor }> {
  checkOptions('aged-adam', options, agedAdamNames);
  const { beta1 = 0.9, beta2 = 0.999, eps = 1e-6 } = options;
  for (const [name, beta] of Object.entries({ beta1, beta2 })) {
    if (!(beta >= 0 && beta < 1)) throw outOfRange('adam', name, beta, 'in [0, 1)');
  }
  if (!(eps >= 0 && eps < Infinity)) throw outOfRange('adam', 'eps', eps, 'a finite number of at least 0');
  return {
    name: 'aged-adam',
    options: { beta1, beta2, eps },
    layout: {
      momentum: { per: 'entry', signed: true },
      variance: { per: 'entry', signed: false },
      age: { per: 'entry', signed: false, exact: true },
    },
    init: ({ shape }) => ({ momentum: zeros([...shape]), variance: zeros([...shape]), age: ones([...shape]) }),
    update: (gradient, { momentum, variance, age }) => {
      const value = valueOf(gradient);
      const m = add(mul(momentum, beta1), mul(value, 1 - beta1));
      const v = add(mul(variance, beta2), mul(square(value), 1 - beta2));
      const direction = mul(div(m, rise(beta1, age)), div(sqrt(rise(beta2, age)), add(sqrt(v), eps)));
      return { update: dense(direction), state: { momentum: m, variance: v, age: add(age, 1) } };
    },
    begin: ({ momentum, variance, age }, entries) => {
      if (entries.seen === undefined) {
        return { momentum: beginAt(entries, momentum), variance: beginAt(entries, variance), age: beginAt(entries, age, ones(age.shape)) };
      }
      const { mean, meanSquare, steps } = entries.seen;
      return {
        momentum: beginAt(entries, momentum, mul(mean, -Math.expm1(steps * Math.log(beta1)))),
        variance: beginAt(entries, variance, mul(meanSquare, -Math.expm1(steps * Math.log(beta2)))),
        age: beginAt(entries, age, fill(age.shape, steps)),
      };
    },
  };
}

/** 1 - beta^age for each entry; the difference itself would lose half its digits in the first steps. */
const rise = (beta: number, age: Tensor): Tensor => tidy(() => neg(expm1(mul(age, Math.log(beta)))));
