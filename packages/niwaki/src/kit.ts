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
    nf4: (model, options, { at, signal }) => quantize(model, nf4(options as never), { at, ...(signal && { signal }) }),
    fp4: (model, options, { at, signal }) => quantize(model, fp4(options as never), { at, ...(signal && { signal }) }),
    rtn: (model, options, { at, signal }) => quantize(model, rtn(options as never), { at, ...(signal && { signal }) }),
    'int8-weights': (model, options, { at, signal }) => quantize(model, int8Weights(options as never), { at, ...(signal && { signal }) }),
  },
  adapt: {
    lora: (model, options, { at, seed, signal }) => adapt(model, lora(options as never), { at, seed, ...(signal && { signal }) }),
    dora: (model, options, { at, seed, signal }) =>
      adapt(model, lora({ ...(options as object), dora: true }), { at, seed, ...(signal && { signal }) }),
    ia3: (model, options, { at, seed, signal }) => adapt(model, ia3(options as never), { at, seed, ...(signal && { signal }) }),
    'prefix-tuning': (model, options, { at, seed, signal }) =>
      adapt(model, prefixTuning(options as never), { at, seed, ...(signal && { signal }) }),
    'prompt-tuning': (model, options, { at, seed, signal }) =>
      adapt(model, promptTuning(options as never), { at, seed, ...(signal && { signal }) }),
    bottleneck: (model, options, { at, seed, signal }) =>
      adapt(model, bottleneck(options as never), { at, seed, ...(signal && { signal }) }),
    s2ft: (model, options, { at, seed, signal }) => adapt(model, s2ft(options as never), { at, seed, ...(signal && { signal }) }),
    spiel: (model, options, { at, seed, signal }) => adapt(model, spiel(options as never), { at, seed, ...(signal && { signal }) }),
    compacter: (model, options, { at, seed, signal }) => adapt(model, compacter(options as never), { at, seed, ...(signal && { signal }) }),
    qst: (model, options, { at, seed, signal }) => adapt(model, qst(options as never), { at, seed, ...(signal && { signal }) }),
  },
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
