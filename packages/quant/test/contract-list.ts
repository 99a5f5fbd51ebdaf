import type { WeightMethodCase } from '../../testing/src/weight-method-contract.ts';
import { activations, awq, cbq, fp4, gptq, nf4, normalFloat, rtn } from '../src/index.ts';

// One line a method: the contract suite of this package and the composition matrix of all packages run what is listed.

/** Why the device may decide what AWQ cuts. */
const halfWay = 'a group cut alike on both sides has its zero half-way between two codes: the last bit of a division decides';

export const quantizers: Readonly<Record<string, WeightMethodCase>> = {
  nf4: { make: () => nf4({ blockSize: 32 }) },
  fp4: { make: () => fp4({ blockSize: 32, doubleQuant: false }) },
  normalFloat: { make: () => normalFloat({ bits: 3, blockSize: 16, groupSize: 8 }) },
  rtn: { make: () => rtn({ groupSize: 32 }) },
  int8: { make: () => rtn({ bits: 8, groupSize: 'row', symmetric: true }) },
  gptq: { make: () => gptq({ groupSize: 32 }) },
  'gptq, largest inputs first': { make: () => gptq({ groupSize: 32, actOrder: true }) },
  awq: { make: () => awq({ groupSize: 32 }), drifts: halfWay },
  'awq, folded': { make: () => awq({ groupSize: 32, fold: true }), drifts: halfWay },
  cbq: { make: () => cbq({ bits: 2, groupSize: 32, epochs: 4, learningRate: 1 }) },
  'cbq, with activations': {
    make: () => cbq({ bits: 2, groupSize: 32, epochs: 4, learningRate: 1, activations: { per: 'tensor', attention: ['keys', 'values'] } }),
    drifts: 'a sum in another order rounds an input otherwise, and the fit goes on from there',
  },
  activations: { make: () => activations({ bits: 6 }) },
  'activations, per tensor': { make: () => activations({ per: 'tensor' }) },
};
