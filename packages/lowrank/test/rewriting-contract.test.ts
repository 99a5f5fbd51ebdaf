import { adapterContract } from '../../testing/src/adapter-contract.ts';
import { mergeAdapter, mergeAndUnload, saveAdapter } from '@niwaki/peft';
import { quantizedAdapters, residualAdapters } from './contract-list.ts';
import { verbs } from './verbs.ts';

const residual = adapterContract(verbs);
for (const [name, method] of Object.entries(residualAdapters)) residual(name, method);

// Codes take no change without saying how: the merge widens them.
const quantized = adapterContract({
  ...verbs,
  save: (set, target) => saveAdapter(set, target, { form: 'native' }),
  merge: (model, names) => mergeAdapter(model, names, { into: 'dense' }),
  mergeForGood: (model) => mergeAndUnload(model, undefined, { into: 'dense' }),
});
for (const [name, method] of Object.entries(quantizedAdapters)) quantized(name, method);
