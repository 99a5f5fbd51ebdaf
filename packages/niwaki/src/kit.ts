import { init } from '@niwaki/backend';
import { causalLM, overCodes, type Method } from '@niwaki/engine';
import { nodeFileSystem, saveModel } from '@niwaki/hub';
import {
  bottleneck,
  compacter,
  frugal,
  galore,
  ia3,
  int8Weights,
  lnTuning,
  lora,
  prefixTuning,
  promptTuning,
  qGalore,
  qst,
} from '@niwaki/lowrank';
import { adamw, agedAdamw, lion, schedules, sgd, sm3 } from '@niwaki/optim';
import { adapt, saveAdapter } from '@niwaki/peft';
import { activations, awq, cbq, fp4, gptq, nf4, normalFloat, quantize, rtn } from '@niwaki/quant';
import { dsnot, magnitude, prune, s2ft, sparsegpt, spiel, wanda, type Pruner } from '@niwaki/sparse';
import { checkFlag, checkOptions, NotFoundError, unknownName } from '@niwaki/tensor';
import {
  decodeText,
  diskFolder,
  kindOf,
  loadResult as loadWith,
  runRecipe as runWith,
  type Factory,
  type KitOptions,
  type LoadedResult,
  type LoadResultOptions,
  type Placing,
  type Recipe,
  type RecipeKit,
  type RecipeResult,
  type RunFolder,
  type RunRecipeOptions,
} from '@niwaki/train';
import { load, loadAdapter } from './load.ts';
import { saveStored } from './save-quantized.ts';

/** Pruners that another may start from. */
const pruners: Readonly<Record<string, (options: KitOptions) => Pruner>> = {
  magnitude: (options) => magnitude(options as never),
  wanda: (options) => wanda(options as never),
  sparsegpt: (options) => sparsegpt(options as never),
};

/** dsnot by data alone: `initial` is a pruner's kind or an object with one. */
function dsnotOver({ initial = 'wanda', ...options }: KitOptions): Method {
  const { kind, options: own } = kindOf(initial as Factory);
  if (!Object.hasOwn(pruners, kind)) throw unknownName('dsnot: initial: there is no', kind, Object.keys(pruners));
  return dsnot({ ...(options as object), initial: pruners[kind]!(own) });
}

const quantizers: Readonly<Record<string, (options: KitOptions) => Method>> = {
  nf4: (options) => nf4(options as never),
  fp4: (options) => fp4(options as never),
  'normal-float': (options) => normalFloat(options as never),
  rtn: (options) => rtn(options as never),
  gptq: (options) => gptq(options as never),
  awq: (options) => awq(options as never),
  cbq: (options) => cbq(options as never),
  activations: (options) => activations(options as never),
  'int8-weights': (options) => int8Weights(options as never),
};

/** A quantizer's factory with one more option, `requantize`: as that of `quantize`. */
const takingCodes =
  (factory: (options: KitOptions) => Method) =>
  ({ requantize = false, ...options }: KitOptions): Method => {
    checkFlag('quantize', 'requantize', requantize);
    return requantize ? overCodes(factory(options)) : factory(options);
  };

const applying = ({ at, signal, calibrate, onProgress }: Placing): Omit<Placing, 'seed'> => ({
  at,
  ...(signal && { signal }),
  ...(calibrate && { calibrate }),
  ...(onProgress && { onProgress }),
});

/** Everything a recipe may name. Options are checked by the factories themselves, so they pass through as they are. */
export const recipeKit: RecipeKit = {
  init,
  load,
  readText: async (path) => {
    const { fs } = nodeFileSystem();
    const bytes = await fs.readFile(path).catch((cause: unknown) => {
      throw new NotFoundError(`no file '${path}' that can be read`, { path, cause });
    });
    return decodeText(bytes, { name: path });
  },
  folder: diskFolder,
  prune: { ...pruners, dsnot: dsnotOver },
  quantize: Object.fromEntries(Object.entries(quantizers).map(([kind, factory]) => [kind, takingCodes(factory)])),
  adapt: {
    lora: (options) => lora(options as never),
    dora: (options) => lora({ ...(options as object), dora: true }),
    ia3: (options) => ia3(options as never),
    'ln-tuning': (options) => lnTuning(options as never),
    'prefix-tuning': (options) => prefixTuning(options as never),
    'prompt-tuning': (options) => promptTuning(options as never),
    bottleneck: (options) => bottleneck(options as never),
    s2ft: (options) => s2ft(options as never),
    spiel: (options) => spiel(options as never),
    compacter: (options) => compacter(options as never),
    qst: (options) => qst(options as never),
  },
  pruneModel: (model, method, placing) => prune(model, method, applying(placing)),
  quantizeModel: (model, method, placing) => quantize(model, method, applying(placing)),
  adaptModel: (model, method, { at, seed, signal }) => adapt(model, method, { at, seed, ...(signal && { signal }) }),
  loadAdapter,
  saveAdapter,
  saveModel,
  saveStored,
  optimizers: {
    adamw: (options) => adamw(options as never),
    sgd: (options) => sgd(options as never),
    lion: (options) => lion(options as never),
    'aged-adamw': (options) => agedAdamw(options as never),
    sm3: (options) => sm3(options as never),
    galore: (options) => galore(options as never),
    'q-galore': (options) => qGalore(options as never),
    frugal: (options) => frugal(options as never),
  },
  schedules: schedules as unknown as RecipeKit['schedules'],
  objectives: {
    causalLM: (options) => {
      checkOptions('causalLM', options as object, []);
      return causalLM();
    },
  },
};

/**
 * Runs a recipe with everything Niwaki has; `kit` adds to it or replaces parts.
 * @example await runRecipe({ model: 'niwaki-tiny', data: 'notes.txt', steps: 20, out: 'my-adapter' });
 */
export const runRecipe = (
  recipe: Recipe,
  { kit, ...options }: RunRecipeOptions & { readonly kit?: Partial<RecipeKit> } = {},
): Promise<RecipeResult> => runWith(recipe, { ...recipeKit, ...kit }, options);

/**
 * What a recipe with an adapter left in its folder, as it was at the end of training: the model, pruned and quantized as it
 * was, and the adapter on it, active.
 * @example const { model, tokenizer } = await loadResult('./my-adapter');
 */
export const loadResult = (
  where: string | RunFolder,
  { kit, ...options }: LoadResultOptions & { readonly kit?: Partial<RecipeKit> } = {},
): Promise<LoadedResult> => loadWith(where, { ...recipeKit, ...kit }, options);
