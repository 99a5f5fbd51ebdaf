import {
  add,
  attention,
  reshape,
  rmsNorm,
  rope,
  swiglu,
  type Parameter,
  type Tensor1D,
  type Tensor2D,
  type Tensor3D,
  type Tensor4D,
} from '@niwaki/tensor';
import type { Call, Weight } from '@niwaki/weights';
import { batchBounds, tokenIdsOf } from '../batch.ts';
import type { Carry, Model, ModelInfo, Point, Site } from '../graph.ts';
import { cacheOf } from '../kv-cache.ts';
import { createGraph, type StageSpec } from '../model.ts';
import { readOwn, runSite, type Attached } from '../run-site.ts';
import type { DecoderConfig } from './config.ts';
import { ropeTables } from './rope-tables.ts';

/** Everything a decoder stores. `head` is the embedding's own weight where the two are tied. */
export interface DecoderWeights {
  readonly embedding: Weight;
  readonly blocks: readonly BlockWeights[];
  readonly norm: Parameter;
  readonly head: Weight;
}

export interface Linear {
  readonly weight: Weight;
  readonly bias?: Parameter | undefined;
}

export interface BlockWeights {
  readonly inputNorm: Parameter;
  readonly q: Linear;
  readonly k: Linear;
  readonly v: Linear;
  readonly o: Linear;
  readonly queryNorm?: Parameter | undefined;
  readonly keyNorm?: Parameter | undefined;
  readonly mlpNorm: Parameter;
  readonly gate: Linear;
  readonly up: Linear;
  readonly down: Linear;
}

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

function siteOf(path: string, point: Point, inputId: string, { weight, bias }: Linear): Site {
  return { path, point, inputId, weight, ...(bias === undefined ? {} : { bias }) };
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
      const h = runSite(site, reshape(ids, [batch * time]), call, attached);
      call.emit(path, h);
      const streams: Carry = {
        h,
        ...ropeTables(config.rope, { batch, time, past, given: call.batch['positions'] }),
        ...batchBounds(call.batch, { past }),
      };
      return window === undefined ? streams : { ...streams, windowFrom: batchBounds(call.batch, { past, window }).from };
    },
  };
}

function blockStage(config: DecoderConfig, weights: BlockWeights, layer: number, attached: Attached): StageSpec {
  const path = `model.layers.${layer}`;
  const attend = selfAttention(config, weights, { path: `${path}.self_attn`, attached, layer });
  const mlp = gatedMlp(weights, { path: `${path}.mlp`, attached });
  const norm = rmsNormOf(config, attached);
  return {
    path,
    reads: ['h', ...attend.streams],
    writes: ['h'],
    constants: attend.streams,
    sites: [...attend.sites, ...mlp.sites],
    own: [weights.inputNorm, weights.mlpNorm, ...[weights.queryNorm, weights.keyNorm].filter((own) => own !== undefined)],
    run: (carry, call) => {
      const h = carry['h'] as Tensor2D;
      const attended: Tensor2D = add(h, attend.run(norm(h, weights.inputNorm, call), carry, call));
      const out = add(attended, mlp.run(norm(attended, weights.mlpNorm, call), call));
      call.emit(path, out);
      return { h: out };
    },
  };
}

function headStage(config: DecoderConfig, { head, norm, embedding }: DecoderWeights, attached: Attached): StageSpec {
  const site: Site = {
    ...siteOf('lm_head', 'head', 'model.norm', { weight: head }),
    ...(head === embedding ? { tiedTo: 'model.embed_tokens' } : {}),
  };
  const normalize = rmsNormOf(config, attached);
  return {
    path: 'lm_head',
    reads: ['h'],
    writes: ['logits'],
    sites: [site],
    own: [norm],
    run: (carry, call) => {
      const last = normalize(carry['h'] as Tensor2D, norm, call);
      call.emit('model.norm', last);
      return { logits: runSite(site, last, call, attached) };
    },
  };
}

type Norm = (x: Tensor2D, weight: Parameter, call: Call) => Tensor2D;

const rmsNormOf =
  ({ eps }: DecoderConfig, attached: Attached): Norm =>
  (x, weight, call) => {
    const { value, tracked } = readOwn(weight, call, attached);
    return rmsNorm(x, value as Tensor1D, { eps, weightGradient: tracked });
  };

interface Part {
  readonly path: string;
  readonly attached: Attached;
}

interface SelfAttention {
  readonly sites: readonly Site[];
  /** The tables and bounds it reads. */
  readonly streams: readonly string[];
  run(x: Tensor2D, carry: Carry, call: Call): Tensor2D;
}

function selfAttention(config: DecoderConfig, weights: BlockWeights, { path, attached, layer }: Part & { layer: number }): SelfAttention {
  const { heads, kvHeads, headSize: d } = config;
  const input = `${path}.q_proj`;
  const q = siteOf(`${path}.q_proj`, 'linear', input, weights.q);
  const k = siteOf(`${path}.k_proj`, 'linear', input, weights.k);
  const v = siteOf(`${path}.v_proj`, 'linear', input, weights.v);
  const o = siteOf(`${path}.o_proj`, 'linear', `${path}.o_proj`, weights.o);
  const from = config.windows[layer] === undefined ? 'from' : 'windowFrom';
  const norm = rmsNormOf(config, attached);
  return {
    sites: [q, k, v, o],
    streams: ['cos', 'sin', from, 'to'],
    run: (x, carry, call) => {
      const [batch, time] = tokenIdsOf(call.batch).shape;
      const [cos, sin] = [carry['cos'] as Tensor2D, carry['sin'] as Tensor2D];
      const rotated = (site: Site, count: number, headNorm: Parameter | undefined): Tensor4D => {
        const y = runSite(site, x, call, attached);
        // The norm comes before the rotation, over each head alone.
        const normalized = headNorm === undefined ? y : norm(reshape(y, [batch * time * count, d]), headNorm, call);
        return reshape(rope(reshape(normalized, [batch * time, count, d]) as Tensor3D, cos, sin), [batch, time, count, d]);
      };
      const queries = rotated(q, heads, weights.queryNorm);
      const fresh = {
        k: rotated(k, kvHeads, weights.keyNorm),
        v: reshape(runSite(v, x, call, attached), [batch, time, kvHeads, d]) as Tensor4D,
      };
      const keys = cacheOf(call.session)?.extend(path, fresh.k, fresh.v) ?? fresh;
      const bounds = { from: carry[from] as Tensor2D, to: carry['to'] as Tensor2D };
      const y = attention(queries, keys.k, keys.v, bounds, { scale: d ** -0.5 });
      return runSite(o, reshape(y, [batch * time, heads * d]), call, attached);
    },
  };
}

function gatedMlp(
  weights: BlockWeights,
  { path, attached }: Part,
): { readonly sites: readonly Site[]; run(x: Tensor2D, call: Call): Tensor2D } {
  const gate = siteOf(`${path}.gate_proj`, 'linear', `${path}.gate_proj`, weights.gate);
  const up = siteOf(`${path}.up_proj`, 'linear', `${path}.gate_proj`, weights.up);
  const down = siteOf(`${path}.down_proj`, 'linear', `${path}.down_proj`, weights.down);
  return {
    sites: [gate, up, down],
    run: (x, call) => runSite(down, swiglu(runSite(gate, x, call, attached), runSite(up, x, call, attached)), call, attached),
  };
}
