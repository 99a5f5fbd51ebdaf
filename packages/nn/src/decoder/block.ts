import { add, attention, reshape, rope, swiglu, type Parameter, type Tensor2D, type Tensor3D, type Tensor4D } from '@niwaki/tensor';
import type { Call } from '@niwaki/weights';
import { tokenIdsOf } from '../batch.ts';
import type { Carry, Site } from '../graph.ts';
import { cacheOf } from '../kv-cache.ts';
import { runSite, type Attached } from '../run-site.ts';
import type { StageSpec } from '../stage-parameters.ts';
import type { DecoderConfig } from './config.ts';
import { rmsNormOf, siteOf } from './parts.ts';
import type { BlockWeights } from './weights.ts';

/** One layer: h + attention(norm h), then + mlp(norm of that). */
export function blockStage(config: DecoderConfig, weights: BlockWeights, layer: number, attached: Attached): StageSpec {
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
