import * as v from 'valibot';
import { checkOptions, ConfigError, type Json, type Parameter, type Tensor } from '@niwaki/tensor';
import { defineMethod, type Method, type Plan } from '@niwaki/engine';
import {
  adapterFile,
  adapterParameter,
  moduleNames,
  type AdapterFile,
  type AdapterMethod,
  type Binding,
  type TargetOptions,
} from '@niwaki/peft';
import type { Adapter, Model, Site } from '@niwaki/nn';

export type LnTuningOptions = Pick<TargetOptions, 'excludeModules' | 'modulesToSave'>;

/** The parameters a norm may have, by their names in files. */
const slots: Readonly<Record<string, 'weight' | 'bias'>> = { 'ln_tuning_layers.weight': 'weight', 'ln_tuning_layers.bias': 'bias' };

/**
 * Trains copies of the norms' weights, and biases where there are some, in place of the model's own (Zhao et al. 2023, LN
 * tuning). Trains as many numbers as the norms have, 4 bytes each. Merges exactly: the norms take the values. Where
 * several sets are active, the last one's stand.
 * @throws ConfigError for a place that is no norm
 * @example await adapt(model, lnTuning(), { at: ['input_layernorm', 'post_attention_layernorm', 'norm'] });
 */
export function lnTuning(options: LnTuningOptions = {}): AdapterMethod {
  checkOptions('lnTuning', options, ['excludeModules', 'modulesToSave']);
  const bind = ({ name }: Pick<Binding, 'name'>): Method<Plan & { model?: Model }> =>
    defineMethod({
      kind: 'ln-tuning',
      options: options as unknown as { readonly [name: string]: Json },
      traits: { gives: ['merge'] },
      makes: 'adapter',
      points: ['norm'],
      validate: (site, model) => void ownOf(site, model),
      plan: async (_, model) => ({ model }),
      make: async (site, { model }) => ({ adapter: normAt(site, name, copiesOf(ownOf(site, model!))) }),
    });
  return {
    ...(bind({ name: 'default' }) as Method),
    file: lnTuningFile,
    targeting: options,
    slots: Object.keys(slots),
    stored: (site, model) => Object.fromEntries([...ownOf(site, model)].map(([slot, { shape }]) => [slot, shape])),
    rankAt: () => undefined,
    bind: bind as (binding: Binding) => Method,
    restore: async (site, tensors, { name }) => ({ adapter: normAt(site, name, tensors) }),
  };
}

/** What PEFT takes of Llama's kind where a config names no modules. */
const defaultTargets: readonly string[] = ['input_layernorm', 'post_attention_layernorm', 'norm'];

/** `peft_type: LN_TUNING`. */
export const lnTuningFile: AdapterFile = adapterFile({
  peftType: 'LN_TUNING',
  fields: { exclude_modules: v.nullish(moduleNames), modules_to_save: v.nullish(v.array(v.string())) },
  targets: () => defaultTargets,
  make: (config) =>
    lnTuning({
      ...(config.exclude_modules != null && { excludeModules: config.exclude_modules }),
      ...(config.modules_to_save != null && { modulesToSave: config.modules_to_save }),
    }),
  write: ({ method }) => {
    const { excludeModules, modulesToSave } = method.targeting as LnTuningOptions;
    return { exclude_modules: (excludeModules ?? null) as Json, modules_to_save: (modulesToSave ?? null) as Json };
  },
});

/** A norm's own parameters by slot. */
function ownOf({ path, point }: Site, model: Model): ReadonlyMap<string, Parameter> {
  const all = model.parameters();
  const found = new Map(
    Object.entries(slots).flatMap(([slot, name]) => (all.has(`${path}.${name}`) ? [[slot, all.get(`${path}.${name}`)!]] : [])),
  );
  if (point === 'norm' && found.size > 0) return found;
  throw new ConfigError(`LN tuning goes to norms, '${path}' is a ${point}`, { path, point });
}

const copiesOf = (own: ReadonlyMap<string, Parameter>): ReadonlyMap<string, Tensor> =>
  new Map([...own].map(([slot, parameter]) => [slot, parameter.read().clone()]));

/** @param values by slot; the adapter takes them over */
function normAt({ path }: Site, name: string, values: ReadonlyMap<string, Tensor>): Adapter {
  const parameters = Object.fromEntries(
    [...values].map(([slot, value]) => [slot, adapterParameter(path, name, slot, value, slots[slot] === 'bias' ? 'bias' : 'norm')]),
  );
  return {
    kind: 'ln-tuning',
    point: 'norm',
    parameters,
    apply: (x, next) => next(x),
    replaces: Object.fromEntries(Object.entries(parameters).map(([slot, parameter]) => [slots[slot]!, parameter])),
    startsFrom: 'base',
  };
}
