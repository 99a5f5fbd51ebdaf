import { add, checkFlag, checkOptions, mul, outOfRange, zeros, type Tensor } from '@niwaki/tensor';
import { beginAt } from './begin-entries.ts';
import { dense, valueOf } from './dense-update.ts';
import type { Transform } from './transform.ts';

export interface MomentumOptions {
  /** How much of the last update stays, in [0, 1); default 0.9. */
  readonly momentum?: number;
  /** Look one step ahead (Sutskever et al. 2013); default false. */
  readonly nesterov?: boolean;
}

/** Heavy-ball momentum as in torch: buffer ← momentum · buffer + gradient. State: one f32 tensor a parameter, 4 bytes an entry. */
export function scaleByMomentum(options: MomentumOptions = {}): Transform<{ buffer: Tensor }> {
  checkOptions('momentum', options, ['momentum', 'nesterov']);
  const { momentum = 0.9, nesterov = false } = options;
  if (!(momentum >= 0 && momentum < 1)) throw outOfRange('momentum', 'momentum', momentum, 'in [0, 1)');
  checkFlag('momentum', 'nesterov', nesterov);
  return {
    name: 'momentum',
    options: { momentum, nesterov },
    layout: { buffer: { per: 'entry', signed: true } },
    init: ({ shape }) => ({ buffer: zeros([...shape]) }),
    update: (gradient, { buffer }) => {
      const value = valueOf(gradient);
      const next = add(mul(buffer, momentum), value);
      return { update: dense(nesterov ? add(value, mul(next, momentum)) : next), state: { buffer: next } };
    },
    // Where as many steps of one gradient would have brought it.
    begin: ({ buffer }, entries) => ({
      buffer: beginAt(entries, buffer, entries.seen && mul(entries.seen.mean, (1 - momentum ** entries.seen.steps) / (1 - momentum))),
    }),
  };
}
