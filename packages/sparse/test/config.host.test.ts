import { configContract, type FieldCase } from '../../testing/src/config-contract.ts';
import {
  dsnot,
  lisa,
  magnitude,
  s2ft,
  sparsegpt,
  spiel,
  wanda,
  type AmountOptions,
  type DsnotOptions,
  type LisaOptions,
  type MagnitudeOptions,
  type S2ftOptions,
  type SparseGptOptions,
  type SpielOptions,
  type WandaOptions,
} from '../src/index.ts';

const amount = {
  sparsity: { takes: 0.5, not: [-0.1, 1, Number.NaN] },
  n: { not: 'it comes with m, in place of sparsity' },
  m: { not: 'it comes with n, in place of sparsity' },
  store: { takes: 'csr', not: ['dense'] },
} as const;
const ofTargets = 'a selection, which is checked against the model';
const count: FieldCase<number> = { takes: 2, not: [0, 1.5] };

configContract<MagnitudeOptions>('magnitude', magnitude, { ...amount, scope: { takes: 'row', not: ['column'] } });
configContract<WandaOptions>('wanda', wanda, amount);
for (const [name, make] of Object.entries({ magnitude, wanda, sparsegpt })) {
  configContract<AmountOptions>(`${name}, n of m`, make, {
    sparsity: { not: 'n and m are in its place' },
    n: { takes: 2, not: [0, 4, 1.5] },
    m: { takes: 4, not: [6, 64] },
  });
}
configContract<SparseGptOptions>('sparsegpt', sparsegpt, { ...amount, damping: { takes: 0.1, not: [0, 1] }, blockSize: count });
configContract<DsnotOptions>('dsnot', dsnot, {
  initial: { takes: magnitude({ sparsity: 0.5 }), not: 'a pruner, which the compiler knows' },
  cycles: count,
  threshold: { takes: 0.2, not: [0, -1] },
  variancePower: { takes: 0.5, not: [-1] },
  sameSign: { takes: true, not: ['yes'] },
  refine: { takes: 'all', not: ['none'] },
  store: { takes: 'csr', not: ['dense'] },
});
configContract<LisaOptions>('lisa', lisa, {
  active: count,
  every: count,
  blocks: { takes: '**.layers.*', not: 'a pattern, which is checked against the model' },
  state: { takes: 'keep', not: ['lose'] },
});
configContract<Required<Pick<SpielOptions, 'numTunable'>>>('spiel, by number', spiel, { numTunable: { takes: 100, not: [0, 2.5] } });
configContract<SpielOptions>('spiel', spiel, {
  density: { takes: 0.1, not: [0, 1.1] },
  numTunable: { not: 'it is in place of density' },
  algorithm: { takes: 'MA', not: ['RigL'] },
  accumulationSteps: { takes: 2, not: [0, 1.5] },
  reselectionSteps: { takes: 20, not: [1.5, 2] },
  initialRate: { takes: 0.2, not: [0, 1.1] },
  policy: { takes: 'cosine', not: ['sqrt'] },
  layersToTransform: { takes: [0], not: ofTargets },
  layersPattern: { takes: 'layers', not: ofTargets },
  modulesToSave: { takes: ['lm_head'], not: ofTargets },
});
const ratio: FieldCase<number> = { takes: 0.5, not: [-0.1, 1.1, Number.NaN] };
configContract<S2ftOptions>('s2ft', s2ft, {
  outputRatio: ratio,
  valueRatio: ratio,
  downRatio: ratio,
  upRatio: ratio,
  strategy: { takes: 'weight', not: ['norm'] },
  pick: { takes: 'largest', not: ['middle'] },
  batches: { takes: [], not: 'they are data' },
  exclude: { takes: {}, not: ofTargets },
  slices: { takes: {}, not: ofTargets },
  permute: { takes: true, not: ['yes'] },
  inPlace: { takes: true, not: ['yes'] },
});
