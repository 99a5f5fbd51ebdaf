import * as v from 'valibot';
import {
  checkFlag,
  checkOptions,
  ConfigError,
  mul,
  noise,
  NotFoundError,
  ones,
  pythonFullMatch,
  reshape,
  tidy,
  type Draw,
  type Json,
  type Parameter,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import { defineMethod, type Method } from '@niwaki/engine';
import {
  adapterFile,
  adapterParameter,
  endsWithName,
  moduleNames,
  parameterPath,
  unbound,
  type AdapterFile,
  type AdapterMethod,
  type Binding,
  type TargetOptions,
} from '@niwaki/peft';
import type { Adapter, Site } from '@niwaki/nn';

export interface Ia3Options extends Pick<TargetOptions, 'excludeModules' | 'modulesToSave'> {
  /**
   * Targets whose input is scaled instead of their output: a Python regular expression of the whole path, or names
   * matched as dotted suffixes. Default `['down_proj']`, the one map of a gated MLP that reads its hidden activations.
   */
  readonly feedforwardModules?: string | readonly string[];
  /** Default true: all factors 1, the base's output. False: factors from N(0, 1). */
  readonly init?: boolean;
}

type Ia3Settings = Required<Pick<Ia3Options, 'feedforwardModules' | 'init'>> & TargetOptions;

const slot = 'ia3_l';

/**
 * A trained factor for each output of a linear map, y = l ⊙ (W·x + b), or for each input of a feed-forward one,
 * y = W·(l ⊙ x) + b (Liu et al. 2022, (IA)³). Trains out or in numbers a site, 4 bytes each. Merges exactly: the rows or
 * columns of W are scaled.
 * @throws ConfigError for an option of a wrong type
 * @example await adapt(model, ia3(), { at: ['k_proj', 'v_proj', 'down_proj'] });
 */
export function ia3(options: Ia3Options = {}): AdapterMethod {
  const settings = ia3Settings(options);
  const scalesInput = inputScaler(settings.feedforwardModules);
  const shared = {
    kind: 'ia3',
    options: settings as unknown as { readonly [name: string]: Json },
    traits: { needs: ['base-values'] as const, gives: ['merge'] as const },
    makes: 'adapter' as const,
    validate: checkSite,
  };
  const shapeOf = (site: Site): [number, number] => {
    const [out, width] = site.weight!.shape;
    return scalesInput(site.path) ? [1, width] : [out, 1];
  };
  const at = (site: Site, value: Tensor, { name }: Binding): Adapter =>
    scaling(site, adapterParameter(site.path, name, slot, value, 'magnitude'), { input: scalesInput(site.path) });
  const bind = (binding: Binding): Method =>
    defineMethod({
      ...shared,
      make: async (site) => ({ adapter: at(site, factors(shapeOf(site), site.path, settings, binding), binding) }),
    });
  return {
    ...bind(unbound),
    file: ia3File,
    targeting: settings,
    slots: [slot],
    stored: (site) => ({ [slot]: shapeOf(site) }),
    rankAt: () => undefined,
    bind,
    restore: async (site, tensors, binding) => ({ adapter: at(site, tensors.get(slot)!, binding) }),
  };
}

/** What PEFT takes where a config names no modules. */
const defaultTargets: readonly string[] = ['k_proj', 'v_proj', 'down_proj'];
const defaultFeedforward: readonly string[] = ['down_proj'];

/** `peft_type: IA3`. */
export const ia3File: AdapterFile = adapterFile({
  peftType: 'IA3',
  fields: {
    feedforward_modules: v.nullish(moduleNames),
    exclude_modules: v.nullish(moduleNames),
    modules_to_save: v.nullish(v.array(v.string())),
    init_ia3_weights: v.nullish(v.boolean(), true),
  },
  kept: { fan_in_fan_out: v.nullish(v.boolean()) },
  targets: ({ info }) => {
    const modelType = String(info.config['model_type']);
    if (['llama', 'mistral', 'qwen2', 'qwen3'].includes(modelType)) return defaultTargets;
    throw new NotFoundError(`models of type '${modelType}' have no default target modules`, { modelType });
  },
  make: (config, { named }) =>
    ia3({
      // Without target modules PEFT takes both lists from the architecture; with them, no feed-forward modules means none.
      feedforwardModules: config.feedforward_modules ?? (named ? [] : defaultFeedforward),
      init: config.init_ia3_weights,
      ...(config.exclude_modules != null && { excludeModules: config.exclude_modules }),
      ...(config.modules_to_save != null && { modulesToSave: config.modules_to_save }),
    }),
  write: ({ method }) => {
    const settings = method.targeting as Ia3Options;
    return {
      fan_in_fan_out: false,
      feedforward_modules: settings.feedforwardModules as Json,
      exclude_modules: (settings.excludeModules ?? null) as Json,
      modules_to_save: (settings.modulesToSave ?? null) as Json,
      init_ia3_weights: settings.init ?? true,
    };
  },
});

function ia3Settings(options: Ia3Options): Ia3Settings {
  checkOptions('ia3', options, ['feedforwardModules', 'init', 'excludeModules', 'modulesToSave']);
  const { feedforwardModules = ['down_proj'], init = true, ...rest } = options;
  checkFlag('ia3', 'init', init);
  return { ...rest, feedforwardModules, init };
}

function inputScaler(modules: string | readonly string[]): (path: string) => boolean {
  if (typeof modules !== 'string') return (path) => modules.some((name) => endsWithName(path, name));
  const expression = pythonFullMatch(modules);
  return (path) => expression.test(path);
}

function checkSite({ path, point, weight }: Site): void {
  if ((point === 'linear' || point === 'head') && weight !== undefined) return;
  throw new ConfigError(`ia3 scales what a linear map reads or gives, '${path}' is a ${point}`, { path, point });
}

function factors(shape: [number, number], path: string, { init }: Ia3Settings, { name, draw }: { name: string; draw: Draw }): Tensor2D {
  if (init) return ones(shape);
  return tidy(() => noise(shape, draw.at(`${parameterPath(path, name, slot)}#init`), 'gaussian')) as Tensor2D;
}

function scaling({ point }: Site, factor: Parameter, { input }: { input: boolean }): Adapter {
  return {
    kind: 'ia3',
    point,
    parameters: { [slot]: factor },
    apply: (x, next, call) => {
      const row = reshape(call.value(factor), [1, -1]);
      return input ? next(mul(x, row)) : (mul(next(x), row) as Tensor2D);
    },
    merge: async (weight, bias) =>
      tidy(() => ({
        matrix: mul(weight.dense(), factor.read()) as Tensor2D,
        ...(bias !== undefined && !input && { bias: mul(bias.read(), reshape(factor.read(), [-1])) }),
      })),
    startsFrom: 'base',
  };
}
