import { init } from '@niwaki/backend';
import { causalLM } from '@niwaki/engine';
import { nodeFileSystem, saveModel } from '@niwaki/hub';
import {
  adapt,
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
  saveAdapter,
} from '@niwaki/lowrank';
import { adamw, agedAdamw, lion, schedules, sgd, sm3 } from '@niwaki/optim';
import { fp4, nf4, quantize, rtn } from '@niwaki/quant';
import { s2ft, spiel } from '@niwaki/sparse';
import { NotFoundError } from '@niwaki/tensor';
import { diskFolder, runRecipe as runWith, type Recipe, type RecipeKit, type RecipeResult, type RunRecipeOptions } from '@niwaki/train';
import { load, loadAdapter } from './load.ts';

/** Everything a recipe may name. Options are checked by the factories themselves, so they pass through as they are. */
export const recipeKit: RecipeKit = {
  init,
  load,
  readText: async (path) => {
    const { fs } = nodeFileSystem();
    return fs.readFile(path, 'utf8').catch((cause: unknown) => {
      throw new NotFoundError(`no file '${path}' that can be read`, { path, cause });
    });
  },
  folder: diskFolder,
  quantize: {
    nf4: (options) => nf4(options as never),
    fp4: (options) => fp4(options as never),
    rtn: (options) => rtn(options as never),
    'int8-weights': (options) => int8Weights(options as never),
  },
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
  quantizeModel: (model, method, { at, signal }) => quantize(model, method, { at, ...(signal && { signal }) }),
  adaptModel: (model, method, { at, seed, signal }) => adapt(model, method, { at, seed, ...(signal && { signal }) }),
  loadAdapter,
  saveAdapter,
  saveModel,
  optimizers: {
    adamw: (options) => adamw(options as never),
    sgd: (options) => sgd(options as never),
    lion: (options) => lion(options as never),
    agedAdamw: (options) => agedAdamw(options as never),
    sm3: (options) => sm3(options as never),
    galore: (options) => galore(options as never),
    'q-galore': (options) => qGalore(options as never),
    frugal: (options) => frugal(options as never),
  },
  schedules: schedules as unknown as RecipeKit['schedules'],
  objectives: { causalLM },
};

/**
 * Runs a recipe with everything Niwaki has; `kit` adds to it or replaces parts.
 * @example await runRecipe({ model: 'niwaki-tiny', data: 'notes.txt', steps: 20, out: 'my-adapter' });
 */
export const runRecipe = (
  recipe: Recipe,
  { kit, ...options }: RunRecipeOptions & { readonly kit?: Partial<RecipeKit> } = {},
): Promise<RecipeResult> => runWith(recipe, { ...recipeKit, ...kit }, options);
