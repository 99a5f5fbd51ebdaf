import { reshape, zerosLike, type Tensor2D } from '@niwaki/tensor';
import { batchBounds, tokenIdsOf, type KeyBounds } from '../batch.ts';
import type { Carry, Model, ModelInfo, Site } from '../graph.ts';
import { cacheOf } from '../kv-cache.ts';
import { ledBounds, promptRows, rowPositions, withPrompts } from '../lead.ts';
import { createGraph } from '../model.ts';
import { runModule, runSite, type Attached } from '../run-site.ts';
import type { StageSpec } from '../stage-parameters.ts';
import { blockStage } from './block.ts';
import type { DecoderConfig } from './config.ts';
import { normSite, rmsNormOf, siteOf } from './parts.ts';
import { ropeTables } from './rope-tables.ts';
import type { DecoderWeights } from './weights.ts';

/**
 * A decoder-only language model: embed → blocks → head. Streams: 'h' [batch · time, width]; 'cos' and 'sin'
 * [batch · time, headSize / 2], 'from' and 'to' [batch, time] (and 'windowFrom' where layers slide) made once by the embed
 * stage and read by every block; 'logits' [rows, vocabulary] from the head, which takes any rows of 'h'.
 */
export function createDecoder(config: DecoderConfig, weights: DecoderWeights, info: ModelInfo): Model {
  return createGraph({
    info,
    stages: (attached) => [
      embedStage(config, weights, attached),
      ...weights.blocks.map((block, layer) => blockStage(config, block, layer, attached)),
      headStage(config, weights, attached),
    ],
  });
}

const tables = ['cos', 'sin', 'from', 'to'];
const windowOf = (config: DecoderConfig): number | undefined => config.windows.find((window) => window !== undefined);

function embedStage(config: DecoderConfig, { embedding }: DecoderWeights, attached: Attached): StageSpec {
  const path = 'model.embed_tokens';
  const site = siteOf(path, 'embedding', 'tokenIds', { weight: embedding });
  const window = windowOf(config);
  return {
    path,
    reads: [],
    writes: ['h', ...tables, ...(window === undefined ? [] : ['windowFrom'])],
    sites: [site],
    own: [],
    run: (_, call) => {
      const ids = tokenIdsOf(call.batch);
      const [batch, time] = ids.shape;
      const past = cacheOf(call.session)?.length ?? 0;
      const tokens = runSite(site, reshape(ids, [batch * time]), call, attached);
      call.emit(path, tokens);
      const shift = promptRows(site, call, attached);
      const fresh = past === 0 ? shift : 0;
      const bounds = (limit?: number): KeyBounds => ledBounds(batchBounds(call.batch, { past, window: limit }), { shift, fresh });
      const { from, to } = bounds();
      // Where no bound is given all keys are seen from the first on: the prompts' too.
      const all = shift > 0 && call.batch['keysFrom'] === undefined;
      const streams: Carry = {
        h: fresh === 0 ? tokens : withPrompts(site, tokens, { batch, time }, call, attached),
        ...ropeTables(config.rope, rowPositions(site, call, attached)),
        from: all ? zerosLike(from) : from,
        to,
      };
      return window === undefined ? streams : { ...streams, windowFrom: bounds(window).from };
    },
  };
}

function headStage(config: DecoderConfig, { head, norm, embedding }: DecoderWeights, attached: Attached): StageSpec {
  const site: Site = {
    ...siteOf('lm_head', 'head', 'model.norm', { weight: head }),
    ...(head === embedding ? { tiedTo: 'model.embed_tokens' } : {}),
  };
  const normalize = rmsNormOf(config, attached);
  const module = normSite(norm);
  return {
    path: 'lm_head',
    reads: ['h'],
    writes: ['logits'],
    sites: [site],
    modules: [module],
    own: [norm],
    run: (carry, call) => {
      const last = runModule(module, carry['h'] as Tensor2D, (x) => normalize(x, norm, call), call, attached);
      call.emit('model.norm', last);
      return { logits: runSite(site, last, call, attached) };
    },
  };
}
