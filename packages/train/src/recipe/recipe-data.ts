import { ConfigError, DataError } from '@niwaki/tensor';
import type { Loaded } from '@niwaki/hub';
import { parseDocuments } from '../data/document.ts';
import { batchesWanted, exactBatches } from '../data/exact-batches.ts';
import { languageData, type LanguageData } from '../data/language-data.ts';
import { packSamples } from '../data/pack.ts';
import { tokenizeDocuments } from '../data/tokenize.ts';
import type { TrainData } from '../data/train-data.ts';
import { evaluateText } from '../evaluate/evaluate-text.ts';
import type { TrainOptions } from '../loop/train.ts';
import { pick } from './factories.ts';
import type { RecipeKit } from './kit.ts';
import type { Recipe } from './recipe.ts';

/** What a recipe trains on, in rows of the model's tokens. */
export async function readData(
  recipe: Recipe,
  kit: RecipeKit,
  { model, tokenizer }: Loaded,
): Promise<TrainData | (LanguageData & { dropped: number })> {
  const { vocabularySize, contextLength } = model.info;
  if (recipe.batches !== undefined)
    return exactBatches(parseBatches(await kit.readText(recipe.batches), recipe.batches), { vocabularySize, name: recipe.batches });
  if (recipe.data === undefined)
    throw new ConfigError('the recipe has neither data nor batches', { help: 'Name a .jsonl or a text file in data.' });
  if (tokenizer === undefined)
    throw new ConfigError(`the model '${recipe.model}' came without a tokenizer, so text cannot be read`, { model: recipe.model });
  const context = recipe.context ?? Math.min(512, contextLength);
  if (context > contextLength)
    throw new ConfigError(`context ${context} is more than the model's ${contextLength}`, { context, contextLength });
  const text = await kit.readText(recipe.data);
  const documents = parseDocuments(text, { name: recipe.data, ...pick(recipe, 'split') });
  const samples = tokenizeDocuments(documents, tokenizer);
  const { rows, dropped } = packSamples(samples, {
    context,
    ...pick(recipe, 'pack'),
    ...(recipe.truncate && { long: 'truncate' as const }),
  });
  return { ...languageData(rows, { vocabularySize }), dropped };
}

function parseBatches(text: string, name: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new DataError(`${name} is not JSON: ${(cause as Error).message}`, { name, cause, help: batchesWanted });
  }
}

/** What is told of the data before training. */
export const describe = (
  data: LanguageData & { dropped?: number },
): { rows: number; tokens: number; targets: number; dropped: number } => ({
  rows: data.rows.length,
  tokens: data.tokens,
  targets: data.targets,
  dropped: data.dropped ?? 0,
});

/** The text of a recipe whose loss is reported on the way. */
export async function evaluation(recipe: Recipe, kit: RecipeKit, { model, tokenizer }: Loaded): Promise<Pick<TrainOptions, 'evaluate'>> {
  if (recipe.evaluate === undefined) return {};
  if (tokenizer === undefined)
    throw new ConfigError(`the model '${recipe.model}' came without a tokenizer, so no text can be evaluated`, { model: recipe.model });
  const text = await kit.readText(recipe.evaluate);
  const context = recipe.context ?? Math.min(512, model.info.contextLength);
  const run = async (signal: AbortSignal | undefined): Promise<Record<string, number>> => ({
    ...(await evaluateText(model, tokenizer, text, { context, ...(signal && { signal }) })),
  });
  return { evaluate: { every: recipe.evaluateEvery ?? 100, run } };
}
