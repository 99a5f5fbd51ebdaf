// What a user names: every method of this package and the types of its options. `niwaki` exports this list as it stands.
export type { Codebook4MethodOptions } from './codebook-method.ts';
export { nf4, type Nf4Options } from './nf4.ts';
export { fp4, type Fp4Options } from './fp4.ts';
export { normalFloat, type NormalFloatMethodOptions } from './normal-float.ts';
export type { IntegerOptions } from './affine-options.ts';
export { rtn, type RtnOptions } from './rtn.ts';
export { gptq, type GptqOptions } from './gptq.ts';
export { awq, type AwqOptions } from './awq.ts';
export { cbq, type CbqOptions, type OutlierTreatment, type RoundingStart } from './cbq.ts';
export type { CbqActivations, Operand } from './cbq-activations.ts';
export { activations, type ActivationOptions } from './activations.ts';
