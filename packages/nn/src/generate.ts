import {
  activationModes,
  checkCall,
  checkOptions,
  ConfigError,
  createDraw,
  DataError,
  noise,
  throwIfAborted,
  tidy,
  type Activations,
  type View,
} from '@niwaki/tensor';
import { aModel, tokenIds } from './nouns.ts';
import { checkIds } from './batch.ts';
import type { Model } from './graph.ts';
import { createKeyValueCache } from './kv-cache.ts';
import { createPasses } from './passes.ts';
import { candidatesOf, checkLogits, checkSampling, likeliest, logProbabilityOf, penalize, pick, type SamplingOptions } from './sampling.ts';

export interface GenerateOptions extends SamplingOptions {
  /** Default 128. */
  readonly maxNewTokens?: number;
  /** The same seed gives the same tokens for the same logits; default 0. */
  readonly seed?: number | bigint;
  /** Ids that end the text; default the config's `eos_token_id`. */
  readonly stopIds?: readonly number[];
  readonly signal?: AbortSignal;
  /** Which adapters and perturbations the model is read with. */
  readonly view?: View;
  /** False computes the whole text again for every token; default true. */
  readonly cache?: boolean;
  /**
   * 'int16' and 'int8' round what each packed matrix multiplies while a token is made: faster on wasm, and not the same
   * numbers (see `Activations`); products of more than four rows, as a prompt's, stay exact. Default 'exact'.
   */
  readonly activations?: Activations;
  /** Whether each token carries its log-probability: an exponential for each entry of the vocabulary; default false. */
  readonly logProbabilities?: boolean;
}

export interface GeneratedToken {
  readonly id: number;
  /** 0 for the first new token. */
  readonly index: number;
  /** Of the token under the model's own distribution, before temperature and filters; nats. Only with `logProbabilities`. */
  readonly logProbability?: number;
  /** On the last token: it is a stop id, or `maxNewTokens` were made. */
  readonly finish?: 'stop' | 'length';
}

/**
 * Continues a prompt, one token at a time; the stop token, if one comes, is the last. The keys and values of what was read
 * are cached (see `KeyValueCache` for the bytes) until the iteration ends, however it ends. On wasm and WebGPU a token is a replay of
 * launches that were recorded once: what lies between them is held as long, some kilobytes a layer, and what changes between two
 * tokens (adapters, weights, settings) holds from the next one on.
 * @throws DataError for an empty prompt or an id outside the vocabulary; NumericError for logits that are not finite; AbortError
 * once the signal fires
 * @example
 * for await (const { id } of generate(model, tokenizer.encode('Once upon a time'), { temperature: 0.8, topP: 0.9 })) ids.push(id);
 */
export async function* generate(
  model: Model,
  promptIds: readonly number[],
  options: GenerateOptions = {},
): AsyncGenerator<GeneratedToken, void> {
  checkCall("generate(model, tokenizer.encode('Once upon a time'))", { model: [model, aModel], promptIds: [promptIds, tokenIds] });
  checkOptions('generate', options, [
    'maxNewTokens',
    'temperature',
    'topK',
    'topP',
    'repetitionPenalty',
    'seed',
    'stopIds',
    'signal',
    'view',
    'cache',
    'activations',
    'logProbabilities',
  ]);
  const { maxNewTokens = 128, seed = 0, signal, view, stopIds = endIds(model), temperature = 0, repetitionPenalty, activations } = options;
  checkSampling(options);
  if (!Number.isInteger(maxNewTokens) || maxNewTokens < 0) {
    throw new ConfigError(`generate: maxNewTokens must be a whole number, got ${maxNewTokens}`, { maxNewTokens });
  }
  if (activations !== undefined && !activationModes.includes(activations)) {
    throw new ConfigError(`generate: activations must be one of ${activationModes.join(', ')}, got '${activations}'`, { activations });
  }
  if (promptIds.length === 0)
    throw new DataError('generate: the prompt is empty', { help: 'Start from the beginning-of-text id if the tokenizer has one.' });
  checkIds(promptIds, { vocabularySize: model.info.vocabularySize, where: 'prompt' });
  const stops = new Set(stopIds);
  const ids = [...promptIds];
  const cache = options.cache === false ? undefined : createKeyValueCache();
  const passes = createPasses(model, { cache, view, activations });
  try {
    for (let index = 0; index < maxNewTokens; index++) {
      throwIfAborted(signal, 'generation');
      const logits = await passes.logits(ids.slice(cache?.length ?? 0));
      checkLogits(logits);
      const shaped = penalize(logits, ids, repetitionPenalty);
      const id = temperature === 0 ? likeliest(shaped) : pick(candidatesOf(shaped, options), await pointOf(seed, index));
      ids.push(id);
      const finish = stops.has(id) ? 'stop' : index + 1 === maxNewTokens ? 'length' : undefined;
      yield {
        id,
        index,
        ...(options.logProbabilities === true && { logProbability: logProbabilityOf(logits, id) }),
        ...(finish !== undefined && { finish }),
      };
      if (finish !== undefined) return;
    }
  } finally {
    passes.dispose();
    cache?.dispose();
  }
}

async function pointOf(seed: number | bigint, index: number): Promise<number> {
  const drawn = tidy(() => noise([1], createDraw(seed, index).at('generate#sample'), 'uniform'));
  const [point] = await drawn.data();
  drawn.dispose();
  return point!;
}

function endIds({ info }: Model): readonly number[] {
  const end = info.config['eos_token_id'];
  if (typeof end === 'number') return [end];
  return Array.isArray(end) ? end.filter((id): id is number => typeof id === 'number') : [];
}
