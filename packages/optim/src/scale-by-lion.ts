import { add, checkOptions, mul, outOfRange, sign, zeros, type Tensor } from '@niwaki/tensor';
import { beginAt } from './begin-entries.ts';
import { dense, valueOf } from './dense-update.ts';
import type { Transform } from './transform.ts';

export interface LionDirectionOptions {
  /** How much of the direction is the momentum, in [0, 1); default 0.9. */
  readonly beta1?: number;
  /** Decay of the momentum, in [0, 1); default 0.99. */
  readonly beta2?: number;
}

export const lionNames = ['beta1', 'beta2'] as const;

/**
 * The direction of Lion (Chen et al. 2023, program 1): the sign of a mix of momentum and gradient, ±1 or 0. The momentum
 * takes the gradient in afterwards, at its own pace. State: one f32 tensor a parameter, 4 bytes an entry.
 */
export function scaleByLion(options: LionDirectionOptions = {}): Transform<{ momentum: Tensor }> {
  checkOptions('lion', options, lionNames);
  const { beta1 = 0.9, beta2 = 0.99 } = options;
  for (const [name, beta] of Object.entries({ beta1, beta2 })) {
    if (!(beta >= 0 && beta < 1)) throw outOfRange('lion', name, beta, 'in [0, 1)');
  }
  return {
    name: 'lion',
    options: { beta1, beta2 },
    layout: { momentum: { per: 'entry', signed: true } },
    init: ({ shape }) => ({ momentum: zeros([...shape]) }),
    update: (gradient, { momentum }) => {
      const value = valueOf(gradient);
      const mixed = (beta: number): Tensor => add(mul(momentum, beta), mul(value, 1 - beta));
      return { update: dense(sign(mixed(beta1))), state: { momentum: mixed(beta2) } };
    },
    // Where as many steps of one gradient would have brought it.
    begin: ({ momentum }, entries) => ({
      momentum: beginAt(entries, momentum, entries.seen && mul(entries.seen.mean, 1 - beta2 ** entries.seen.steps)),
    }),
  };
}
