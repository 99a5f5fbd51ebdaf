import {
  add,
  attention,
  reshape,
  rope,
  slice,
  swiglu,
  type Parameter,
  type Tensor,
  type Tensor2D,
  type Tensor3D,
  type Tensor4D,
} from '@niwaki/tensor';
import type { Call } from '@niwaki/weights';
import type { CoupledRows, Coupling } from '../coupling.ts';
import type { Carry, Site } from '../graph.ts';
import { cacheOf } from '../kv-cache.ts';
import { prefixRows, promptRows, shifted, withPrefixes } from '../lead.ts';
import { runModule, runOperand, runSite, type Attached } from '../run-site.ts';
import type { StageSpec } from '../stage-parameters.ts';
import type { DecoderConfig } from './config.ts';
import { branchOf, moduleOf, normSite, rmsNormOf, siteOf } from './parts.ts';
import type { BlockWeights } from './weights.ts';

/**
 * One layer: h + attention(norm h), then + mlp(norm of that).
 * @param options `path`: of a block beside those of the model, which has sites and a key-value cache of its own
 */
export function blockStage(
  config: DecoderConfig,
  weights: BlockWeights,
  layer: number,
  attached: Attached,
  { path = `model.layers.${layer}` }: { readonly path?: string } = {},
): StageSpec {
  const attend = selfAttention(config, weights, { path: `${path}.self_attn`, attached, layer });
  const mlp = gatedMlp(weights, { path: `${path}.mlp`, attached });
  const whole = moduleOf(path, 'block');
  const toAttention = branchOf(config, weights.inputNorm, attached);
  const toMlp = branchOf(config, weights.mlpNorm, attached);
  const last = layer === config.layers - 1;
  return {
    path,
    reads: ['h', ...attend.streams],
    writes: ['h'],
    constants: attend.streams,
    sites: [...attend.sites, ...mlp.sites],
    modules: [whole, normSite(weights.inputNorm), attend.module, ...attend.operands, normSite(weights.mlpNorm), mlp.module],
    couplings: couplingsOf(config, path),
    own: [weights.inputNorm, weights.mlpNorm, ...[weights.queryNorm, weights.keyNorm].filter((own) => own !== undefined)],
    run: (carry, call) => {
      const layers = (h: Tensor2D, own: Call): Tensor2D => {
        const first = toAttention(h, undefined, call);
        const second = toMlp(first.stream, attend.run(first.normed, carry, call), call);
        return add(second.stream, mlp.run(second.normed, own));
      };
      const out = runModule(whole, carry['h'] as Tensor2D, layers, call, attached);
      call.emit(path, out);
      return { h: last ? withoutPrompts(out, carry, call, attached) : out };
    },
  };
}

/** In the order of the forward pass. */
function couplingsOf({ width, heads, kvHeads, headSize, mlpWidth }: DecoderConfig, path: string): Coupling[] {
  const rows = (name: string, serves = 1): CoupledRows => ({ path: `${path}.${name}`, serves });
  const at = (module: string, names: readonly string[]): string[] => names.map((name) => `${path}.${module}.${name}`);
  const norm = (name: string, readers: readonly string[]): Coupling => ({
    kind: 'norm',
    units: width,
    size: 1,
    source: rows(name),
    along: [],
    readers,
  });
  const group = heads / kvHeads;
  return [
    norm('input_layernorm', at('self_attn', ['q_proj', 'k_proj', 'v_proj'])),
    {
      kind: 'heads',
      units: heads,
      size: headSize,
      source: rows('self_attn.v_proj', group),
      along: [rows('self_attn.q_proj'), rows('self_attn.k_proj', group)],
      readers: at('self_attn', ['o_proj']),
    },
    norm('post_attention_layernorm', at('mlp', ['gate_proj', 'up_proj'])),
    {
      kind: 'channels',
      units: mlpWidth,
      size: 1,
      source: rows('mlp.up_proj'),
      along: [rows('mlp.gate_proj')],
      readers: at('mlp', ['down_proj']),
    },
  ];
}

const embedding = moduleOf('model.embed_tokens', 'embedding');

/** The rows of tokens alone, as everything after the blocks counts them. */
function withoutPrompts(h: Tensor2D, carry: Carry, call: Call, attached: Attached): Tensor2D {
  const prompt = isContinued(call) ? 0 : promptRows(embedding, call, attached);
  if (prompt === 0) return h;
  const [batch, time] = (carry['to'] as Tensor2D).shape;
  const width = h.shape[1];
  const tokens = slice(reshape(h, [batch, time, width]), [0, prompt, 0], [batch, time - prompt, width]);
  return reshape(tokens, [batch * (time - prompt), width]);
}

/** Whether a pass goes on where another ended: prompts and prefixes are in the cache already. */
const isContinued = ({ session }: Call): boolean => cacheOf(session)?.begun === true;

interface Part {
  readonly path: string;
  readonly attached: Attached;
}

interface SelfAttention {
  readonly module: Site;
  readonly sites: readonly Site[];
  /** Queries, keys and values as they enter their products; keys and values as a cache holds them. */
  readonly operands: readonly Site[];
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
  const module = moduleOf(path, 'attention');
  const operands = ['queries', 'keys', 'values'].map((name) => moduleOf(`${path}.${name}`, 'operand'));
  const [queriesSite, keysSite, valuesSite] = operands as [Site, Site, Site];
  const run = (x: Tensor2D, carry: Carry, call: Call): Tensor2D => {
    const [batch, time] = (carry['to'] as Tensor2D).shape;
    const [cos, sin] = [carry['cos'] as Tensor2D, carry['sin'] as Tensor2D];
    const headsOf = (site: Site, count: number, headNorm: Parameter | undefined): Tensor3D => {
      const y = runSite(site, x, call, attached);
      // The norm comes before the rotation, over each head alone.
      const normalized = headNorm === undefined ? y : norm(reshape(y, [batch * time * count, d]), headNorm, call);
      return reshape(normalized, [batch * time, count, d]);
    };
    const [turnedQ, turnedK] = rope(headsOf(q, heads, weights.queryNorm), headsOf(k, kvHeads, weights.keyNorm), cos, sin);
    const asOperand = (site: Site, y: Tensor, count: number): Tensor4D => runOperand(site, y, [batch, time, count, d], call);
    const queries = asOperand(queriesSite, turnedQ, heads);
    const fresh = {
      k: asOperand(keysSite, turnedK, kvHeads),
      v: asOperand(valuesSite, runSite(v, x, call, attached), kvHeads),
    };
    const prefix = prefixRows(module, call, attached);
    const lead = prefix + promptRows(embedding, call, attached);
    const led = prefix === 0 || isContinued(call) ? fresh : withPrefixes(module, fresh, call, attached);
    const keys = cacheOf(call.session)?.extend(path, led.k, led.v, lead) ?? led;
    // Where nothing says otherwise a query sees all keys from the first on, those in front included.
    const cut = from !== 'from' || call.batch['keysFrom'] !== undefined;
    const bounds = {
      from: cut ? shifted(carry[from] as Tensor2D, prefix) : (carry[from] as Tensor2D),
      to: shifted(carry['to'] as Tensor2D, prefix),
    };
    const y = attention(queries, keys.k, keys.v, bounds, { scale: d ** -0.5, always: cut ? lead : 0 });
    return runSite(o, reshape(y, [batch * time, heads * d]), call, attached);
  };
  return {
    module,
    sites: [q, k, v, o],
    operands,
    streams: ['cos', 'sin', from, 'to'],
    run: (x, carry, call) => runModule(module, x, (input) => run(input, carry, call), call, attached),
  };
}

function gatedMlp(
  weights: BlockWeights,
  { path, attached }: Part,
): { readonly module: Site; readonly sites: readonly Site[]; run(x: Tensor2D, call: Call): Tensor2D } {
  const gate = siteOf(`${path}.gate_proj`, 'linear', `${path}.gate_proj`, weights.gate);
  const up = siteOf(`${path}.up_proj`, 'linear', `${path}.gate_proj`, weights.up);
  const down = siteOf(`${path}.down_proj`, 'linear', `${path}.down_proj`, weights.down);
  const module = moduleOf(path, 'ffn');
  const run = (x: Tensor2D, call: Call): Tensor2D =>
    runSite(down, swiglu(runSite(gate, x, call, attached), runSite(up, x, call, attached)), call, attached, { last: true });
  return {
    module,
    sites: [gate, up, down],
    run: (x, call) => runModule(module, x, run, call, attached),
  };
}
