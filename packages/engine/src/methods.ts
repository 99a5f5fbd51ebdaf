// What a user names: how a loss becomes gradients, and what the loss is. `niwaki` exports this list as it stands.
export { blockwiseBackprop, fullTapeBackprop, type BackpropOptions, type BlockwiseOptions, type Recompute } from './backprop.ts';
export { causalLM } from './language.ts';
