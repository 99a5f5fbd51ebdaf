import * as v from 'valibot';
import {
  add,
  checkCount,
  checkFlag,
  checkOneOf,
  checkOptions,
  ConfigError,
  createDraw,
  fill,
  layerNorm,
  matMul,
  max,
  mean,
  mul,
  reshape,
  rmsNorm,
  sigmoid,
  StateError,
  sub,
  type Json,
  type Parameter,
  type Role,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import { defineMethod, type Method, type Plan } from '@niwaki/engine';
import { adapterFile, adapterParameter, parameterPath, wholeCount, type AdapterFile, type AdapterMethod, type Binding } from '@niwaki/peft';
import {
  blockStage,
  readDecoderConfig,
  ropeTables,
  rowPositions,
  tokenIdsOf,
  type Adapter,
  type AddedStage,
  type BlockWeights,
  type DecoderConfig,
  type DecoderFamily,
  type Linear,
  type Model,
  type ModelInfo,
  type Site,
} from '@niwaki/nn';
import { denseWeight, type Call } from '@niwaki/weights';
import { uniformStart } from './sublayer.ts';

export interface QstOptions {
  /** Width of the model over that of the side network, r in the paper. Default 16. */
  readonly reduction?: number;
  /** Width between the two matrices of `downsample`, p in the paper. Default 16. */
  readonly rank?: number;
  /**
   * How a hidden state h becomes narrow. 'adapter' (default): B·silu(A·h), 'lora': B·A·h, 'linear': one matrix; these three
   * with a LayerNorm behind, since hidden states have outliers in the hundreds. 'average' and 'max': of `reduction`
   * neighboring features; nothing trains there.
   */
  readonly downsample?: 'adapter' | 'lora' | 'linear' | 'average' | 'max';
  /** Query heads of the side network; default the model's. Key-value heads keep the model's ratio. */
  readonly heads?: number;
  /** Mixes with sigmoid(zeta) instead of alpha, as the authors' code and checkpoints do: then it starts away from the base. */
  readonly codeCompat?: boolean;
}

type QstSettings = Required<Omit<QstOptions, 'heads'>> & Pick<QstOptions, 'heads'>;

/**
 * Quantized side tuning (Zhang et al. 2024): a model `reduction` times narrower runs beside the frozen one, reads the
 * hidden state behind each of its blocks, and is mixed with the last one before the head. No gradient goes through the
 * base, which may be stored in 4 bits: it runs forward once, and the backward pass keeps the hidden states that `downsample`
 * needs for its own gradient, one a block, and with pooling none. A generation caches keys and values of both.
 *
 * Trains L·(d·p + p·s + 2s + 2s² + 2s²·kvHeads/heads + 3s·f + 3s) + s + s·d + 2d numbers, 4 bytes each: L blocks, width d,
 * s = d / reduction, p = rank, f = ⌊mlpWidth / reduction⌋. It goes along the whole model. Not mergeable.
 * @throws ConfigError for an option out of range; with the nearest reductions that fit, where this one does not
 * @example await adapt(model, qst({ reduction: 16 }), { at: '**' });
 */
export function qst(options: QstOptions = {}): AdapterMethod {
  const settings = qstSettings(options);
  const bind = ({ name, draw }: Pick<Binding, 'name' | 'draw'>): Method<Network> =>
    defineMethod<Network>({
      kind: 'qst',
      options: settings as unknown as { readonly [name: string]: Json },
      traits: {},
      makes: 'adapter',
      points,
      plan: async (sites, model) => {
        refusePart(sites, model);
        return networkOf(sites, model, name, settings);
      },
      make: async (site, network) => ({
        adapter: adapterAt(site, network, (slot, { shape, start }) =>
          typeof start === 'number'
            ? fill([...shape], start)
            : uniformStart(shape, start.bound, draw, parameterPath(site.path, name, slot)),
        ),
      }),
    });
  return {
    ...(bind({ name: 'default', draw: createDraw(0, 0) }) as unknown as Method),
    file: qstFile,
    targeting: {},
    slots: everySlot,
    stored: (site, { info }) =>
      Object.fromEntries(Object.entries(slotsAt(site, sideOf(info, settings))).map(([slot, { shape }]) => [slot, shape])),
    rankAt: () => undefined,
    // The embedding and the first block share a downsampling.
    shared: {
      slots: [],
      stored: () => ({}),
      restore: (sites, _, { name }, ofSite, model) => {
        const network = networkOf(sites, model, name, settings);
        return new Map(sites.map((site) => [site.path, adapterAt(site, network, (slot) => ofSite.get(site.path)!.get(slot)!)]));
      },
    },
    bind: bind as unknown as (binding: Binding) => Method,
    restore: () => {
      throw new StateError('internal: a side network is restored along the whole model');
    },
  };
}

/** `peft_type: QST`, a type of ours in the form of PEFT's files; options by the names of the authors' code where it has them. */
export const qstFile: AdapterFile = adapterFile({
  peftType: 'QST',
  fields: {
    r: wholeCount,
    peft_hidden_size: v.nullish(wholeCount),
    downsample: v.picklist(['adapter', 'lora', 'linear', 'average', 'max']),
    num_attention_heads: v.nullish(wholeCount),
    code_compat: v.boolean(),
  },
  targets: 'all',
  make: (config) =>
    qst({
      reduction: config.r,
      downsample: config.downsample,
      codeCompat: config.code_compat,
      ...(config.peft_hidden_size != null && { rank: config.peft_hidden_size }),
      ...(config.num_attention_heads != null && { heads: config.num_attention_heads }),
    }),
  write: ({ method }) => {
    const { reduction, rank, downsample, heads, codeCompat } = method.options as unknown as QstSettings;
    return { r: reduction, peft_hidden_size: rank, downsample, num_attention_heads: heads ?? null, code_compat: codeCompat };
  },
});

const points = ['embedding', 'block', 'head'] as const;
const poolings: readonly string[] = ['average', 'max'];
const downsamples: readonly string[] = ['adapter', 'lora', 'linear', ...poolings];

function qstSettings(options: QstOptions): QstSettings {
  checkOptions('qst', options, ['reduction', 'rank', 'downsample', 'heads', 'codeCompat']);
  const { reduction = 16, rank = 16, downsample = 'adapter', heads, codeCompat = false } = options;
  checkCount('qst', 'reduction', reduction);
  checkCount('qst', 'rank', rank);
  checkFlag('qst', 'codeCompat', codeCompat);
  if (heads !== undefined) checkCount('qst', 'heads', heads);
  checkOneOf('qst', 'downsample', downsample, downsamples);
  return { reduction, rank, downsample, codeCompat, ...(heads !== undefined && { heads }) };
}

/** A side network would not know what the blocks it skips do, and its head needs all of it. */
function refusePart(sites: readonly Site[], model: Model): void {
  const chosen = new Set(sites);
  const left = model.sites(() => true, { points }).filter((site) => !chosen.has(site));
  if (left.length === 0) return;
  throw new ConfigError(`a side network goes along the whole model, and '${left[0]!.path}' is not among the targets`, {
    missing: left.map(({ path }) => path),
    help: "Choose at: '**'.",
  });
}

/** The side network of one model. */
interface Side {
  /** Of its blocks. */
  readonly config: DecoderConfig;
  /** Of the base. */
  readonly width: number;
  readonly settings: QstSettings;
}

const families: readonly string[] = ['llama', 'mistral', 'qwen2', 'qwen3'] satisfies DecoderFamily[];

/** @throws ConfigError where the model's sides cannot be made narrower by this factor */
function sideOf({ family, config }: ModelInfo, settings: QstSettings): Side {
  if (!families.includes(family)) {
    throw new ConfigError(`qst: the side network is made of blocks like Llama's, and the model is a ${family}`, {
      family,
      known: families,
    });
  }
  const base = readDecoderConfig(config, family as DecoderFamily);
  const { reduction, heads = base.heads } = settings;
  const [width, headSize] = [base.width / reduction, base.width / reduction / heads];
  const [mlpWidth, kvHeads] = [Math.floor(base.mlpWidth / reduction), (base.kvHeads * heads) / base.heads];
  if (!fits(headSize) || mlpWidth < 1) throw misfit(base, reduction, heads);
  if (!Number.isInteger(kvHeads)) {
    throw new ConfigError(
      `qst: ${heads} heads are no whole number of key-value heads at the model's ratio of ${base.kvHeads} to ${base.heads}`,
      {
        field: 'heads',
        given: heads,
      },
    );
  }
  if (base.rope.scaling.type === 'longrope') {
    throw new ConfigError('qst: the model lists a divisor for each rotary frequency of its own head size, and none for narrower heads', {
      type: base.rope.scaling.type,
    });
  }
  return { config: { ...base, width, heads, kvHeads, headSize, mlpWidth, rope: { ...base.rope, headSize } }, width: base.width, settings };
}

/** Rotary positions turn pairs of entries. */
const fits = (headSize: number): boolean => Number.isInteger(headSize) && headSize % 2 === 0 && headSize > 0;

function misfit({ width, mlpWidth }: DecoderConfig, reduction: number, heads: number): ConfigError {
  const possible = Array.from({ length: Math.min(width, mlpWidth) }, (_, i) => i + 1).filter((r) => fits(width / r / heads));
  const nearest = possible.sort((a, b) => Math.abs(a - reduction) - Math.abs(b - reduction) || a - b).slice(0, 2);
  return new ConfigError(`qst: a reduction of ${reduction} leaves no even size to each of ${heads} heads of a width of ${width}`, {
    field: 'reduction',
    reduction,
    width,
    heads,
    nearest,
    help: nearest.length === 0 ? 'Give the side network fewer heads.' : `Nearest that fit: ${nearest.join(', ')}. Or give it fewer heads.`,
  });
}

/** A stored tensor: its shape, and a constant or the bound of a uniform draw that it starts from. */
interface Slot {
  readonly shape: readonly number[];
  readonly role: Role;
  readonly start: number | { readonly bound: number };
}
type Slots = Readonly<Record<string, Slot>>;

const matrix = (out: number, width: number, role: Role = 'matrix'): Slot => ({
  shape: [out, width],
  role,
  start: { bound: width ** -0.5 },
});
const bias = (out: number, width: number): Slot => ({ shape: [out], role: 'bias', start: { bound: width ** -0.5 } });
const constant = (size: number, start: number, role: Role): Slot => ({ shape: [size], role, start });

const layer = 'qst_layer';
const linears = ['q_proj', 'k_proj', 'v_proj', 'o_proj']
  .map((name) => `self_attn.${name}`)
  .concat(['gate_proj', 'up_proj', 'down_proj'].map((name) => `mlp.${name}`));
const norms = ['input_layernorm', 'post_attention_layernorm', 'self_attn.q_norm', 'self_attn.k_norm'];
const everySlot: readonly string[] = [
  ...['adapter_A.weight', 'adapter_B.weight', 'linear.weight', 'post_layer_norm.weight', 'post_layer_norm.bias'].map(
    (name) => `downsample.${name}`,
  ),
  ...linears.flatMap((name) => [`${layer}.${name}.weight`, `${layer}.${name}.bias`]),
  ...norms.map((name) => `${layer}.${name}.weight`),
  'qst_z',
  'norm_qst.weight',
  'upsample.weight',
  'upsample.bias',
  'lm_head_z',
];

/** What a site's adapter stores, under the names that the authors' modules have. */
function slotsAt({ point }: Site, { config, width, settings }: Side): Slots {
  const { width: narrow } = config;
  if (point === 'embedding') return {};
  if (point === 'block') return { ...downSlots(width, narrow, settings), qst_z: constant(narrow, 0.5, 'magnitude'), ...layerSlots(config) };
  return {
    'norm_qst.weight': constant(narrow, 1, 'norm'),
    'upsample.weight': matrix(width, narrow),
    'upsample.bias': bias(width, narrow),
    lm_head_z: constant(width, 1, 'magnitude'),
  };
}

function downSlots(width: number, narrow: number, { downsample, rank }: QstSettings): Slots {
  if (poolings.includes(downsample)) return {};
  const maps: Slots =
    downsample === 'linear'
      ? { 'downsample.linear.weight': matrix(narrow, width) }
      : { 'downsample.adapter_A.weight': matrix(rank, width, 'adapterA'), 'downsample.adapter_B.weight': matrix(narrow, rank, 'adapterB') };
  return {
    ...maps,
    'downsample.post_layer_norm.weight': constant(narrow, 1, 'norm'),
    'downsample.post_layer_norm.bias': constant(narrow, 0, 'bias'),
  };
}

function layerSlots({ width, heads, kvHeads, headSize, mlpWidth, biases, headNorm }: DecoderConfig): Slots {
  const [queries, keys] = [heads * headSize, kvHeads * headSize];
  const linear = (name: string, out: number, from: number, biased: boolean): Slots => ({
    [`${layer}.${name}.weight`]: matrix(out, from),
    ...(biased && { [`${layer}.${name}.bias`]: bias(out, from) }),
  });
  const norm = (name: string, size: number): Slots => ({ [`${layer}.${name}.weight`]: constant(size, 1, 'norm') });
  return {
    ...norm('input_layernorm', width),
    ...linear('self_attn.q_proj', queries, width, biases.qkv),
    ...linear('self_attn.k_proj', keys, width, biases.qkv),
    ...linear('self_attn.v_proj', keys, width, biases.qkv),
    ...linear('self_attn.o_proj', width, queries, biases.output),
    ...(headNorm && { ...norm('self_attn.q_norm', headSize), ...norm('self_attn.k_norm', headSize) }),
    ...norm('post_attention_layernorm', width),
    ...linear('mlp.gate_proj', mlpWidth, width, biases.mlp),
    ...linear('mlp.up_proj', mlpWidth, width, biases.mlp),
    ...linear('mlp.down_proj', width, mlpWidth, biases.mlp),
  };
}

type Parameters = Readonly<Record<string, Parameter>>;

/** What the adapters of one set share. */
interface Network extends Plan {
  readonly side: Side;
  /** Of the set: its streams and stages are told apart by it. */
  readonly name: string;
  /** Numbers of the blocks, by path. */
  readonly layers: ReadonlyMap<string, number>;
  /** Of each block, once they are made. */
  readonly blocks: Parameters[];
}

const networkOf = (sites: readonly Site[], { info }: Model, name: string, settings: QstSettings): Network => ({
  side: sideOf(info, settings),
  name,
  layers: new Map(sites.filter(({ point }) => point === 'block').map(({ path }, index) => [path, index])),
  blocks: [],
});

/** Its own state s, the narrow copy of what the base gave last, and rotary tables of its own head size. */
const streamsOf = ({ name }: Network): { readonly s: string; readonly narrow: string; readonly cos: string; readonly sin: string } => ({
  s: `qst.${name}`,
  narrow: `qst.${name}.narrow`,
  cos: `qst.${name}.cos`,
  sin: `qst.${name}.sin`,
});

/** @param values of a slot; the adapter takes them over */
function adapterAt(site: Site, network: Network, values: (slot: string, spec: Slot) => Tensor): Adapter {
  const { side, name, layers, blocks } = network;
  const parameters: Parameters = Object.fromEntries(
    Object.entries(slotsAt(site, side)).map(([slot, spec]) => [
      slot,
      adapterParameter(site.path, name, slot, values(slot, spec), spec.role),
    ]),
  );
  const shared = { kind: 'qst', parameters, startsFrom: side.settings.codeCompat ? 'elsewhere' : 'base' } as const;
  const through: Adapter['apply'] = (x, next) => next(x);
  if (site.point === 'embedding')
    return { ...shared, point: 'embedding', apply: through, stages: (model) => [firstStage(site, network, model)] };
  if (site.point === 'head') return { ...shared, point: 'head', apply: mixedHead(parameters, network), reads: [streamsOf(network).s] };
  const index = layers.get(site.path)!;
  blocks[index] = parameters;
  return {
    ...shared,
    point: 'block',
    apply: through,
    stages: (model) => [narrowStage(site, parameters, network), layerStage(site, index, parameters, network, model)],
  };
}

/** s = D₀(h₀), and the tables: the downsampling of the first block, used once more. */
function firstStage(site: Site, network: Network, model: Model): AddedStage {
  const { side, name } = network;
  const { s, cos, sin } = streamsOf(network);
  const down = downOf(network.blocks[0]!);
  const narrow = narrowing(down, side);
  return {
    path: `${site.path}.qst.${name}`,
    reads: ['h'],
    writes: [s, cos, sin],
    parameters: () => Object.values(down),
    run: (carry, call) => {
      refusePrompt(carry['h']!, call);
      const tables = ropeTables(side.config.rope, rowPositions(site, call, model));
      return { [s]: narrow(carry['h'] as Tensor2D, call), [cos]: tables.cos, [sin]: tables.sin };
    },
  };
}

/** The last block takes the rows of a prompt out of what it gives, and the side network's last block would need them. */
function refusePrompt({ shape: [rows] }: Tensor, { batch }: Call): void {
  if (rows === tokenIdsOf(batch).size) return;
  throw new ConfigError('a side network cannot run behind a prompt: the rows of the prompt end with the last block of the base', {
    help: 'Activate one of the two, or take prefix tuning.',
  });
}

/** A stage of its own, so that a pooling, which trains nothing, lets go of the hidden state. */
function narrowStage({ path }: Site, parameters: Parameters, network: Network): AddedStage {
  const { narrow } = streamsOf(network);
  const down = downOf(parameters);
  const apply = narrowing(down, network.side);
  return {
    path: `${path}.downsample.${network.name}`,
    reads: ['h'],
    writes: [narrow],
    parameters: () => Object.values(down),
    run: (carry, call) => ({ [narrow]: apply(carry['h'] as Tensor2D, call) }),
  };
}

/** s = S((1 - g)·narrow + g·s) with g = sigmoid(z), S a block like the base's. */
function layerStage(site: Site, index: number, parameters: Parameters, network: Network, model: Model): AddedStage {
  const { s, narrow, cos, sin } = streamsOf(network);
  const z = parameters['qst_z']!;
  const block = blockStage(network.side.config, blockWeights(parameters), index, model, { path: `${site.path}.${layer}.${network.name}` });
  const bounds = block.reads.filter((name) => !['h', 'cos', 'sin'].includes(name));
  const down = downOf(parameters);
  return {
    path: block.path,
    reads: [s, narrow, cos, sin, ...bounds],
    writes: [s],
    constants: [cos, sin, ...bounds],
    parameters: () => Object.entries(parameters).flatMap(([slot, parameter]) => (slot in down ? [] : [parameter])),
    run: (carry, call) => {
      const h = mix(sigmoid(call.value(z)), carry[s]!, carry[narrow]!);
      const out = block.run({ ...carry, h, cos: carry[cos]!, sin: carry[sin]! }, call);
      return { [s]: out['h']! };
    },
  };
}

/** next(α·x + (1 - α)·(U·norm(s) + b)), x the normed last hidden state of the base. */
function mixedHead(parameters: Parameters, network: Network): Adapter['apply'] {
  const { s } = streamsOf(network);
  const { config, settings } = network.side;
  const [norm, up, upBias, alpha] = ['norm_qst.weight', 'upsample.weight', 'upsample.bias', 'lm_head_z'].map(
    (slot) => parameters[slot]!,
  ) as [Parameter, Parameter, Parameter, Parameter];
  return (x, next, call) => {
    const state = call.streams?.[s];
    if (state === undefined) throw new StateError(`internal: the head was given no stream '${s}'`, { stream: s });
    const normed = rmsNorm(state as Tensor2D, call.value(norm) as Tensor1D, { eps: config.eps, weightGradient: call.tracks(norm) });
    const side = add(matMul(normed, call.value(up) as Tensor2D, false, true), call.value(upBias));
    const share = call.value(alpha);
    return next(mix(settings.codeCompat ? sigmoid(share) : share, x, side));
  };
}

/** share·a + (1 - share)·b, entry by entry. */
const mix = (share: Tensor, a: Tensor, b: Tensor): Tensor => add(mul(a, share), mul(b, sub(1, share)));

const downOf = (parameters: Parameters): Parameters =>
  Object.fromEntries(Object.entries(parameters).filter(([slot]) => slot.startsWith('downsample.')));

/** Hidden states [rows, width] to [rows, width / reduction]. */
function narrowing(
  down: Parameters,
  { config: { width }, settings: { downsample, reduction } }: Side,
): (h: Tensor2D, call: Call) => Tensor2D {
  const at = (name: string, call: Call): Tensor2D => call.value(down[`downsample.${name}`]!) as Tensor2D;
  const neighbors = (h: Tensor2D): Tensor => reshape(h, [h.shape[0], width, reduction]);
  if (downsample === 'average') return (h) => mean(neighbors(h), 2);
  if (downsample === 'max') return (h) => max(neighbors(h), 2);
  const project = (h: Tensor2D, call: Call): Tensor2D => {
    if (downsample === 'linear') return matMul(h, at('linear.weight', call), false, true);
    const inner = matMul(h, at('adapter_A.weight', call), false, true);
    return matMul(downsample === 'lora' ? inner : mul(inner, sigmoid(inner)), at('adapter_B.weight', call), false, true);
  };
  return (h, call) => {
    const [weight, bias] = ['weight', 'bias'].map((part) => call.value(down[`downsample.post_layer_norm.${part}`]!) as Tensor1D);
    return layerNorm(project(h, call), weight!, bias!, { eps: 1e-5 });
  };
}

function blockWeights(parameters: Parameters): BlockWeights {
  const at = (name: string): Parameter | undefined => parameters[`${layer}.${name}`];
  const linear = (name: string): Linear => ({ weight: denseWeight(at(`${name}.weight`)!), bias: at(`${name}.bias`) });
  return {
    inputNorm: at('input_layernorm.weight')!,
    q: linear('self_attn.q_proj'),
    k: linear('self_attn.k_proj'),
    v: linear('self_attn.v_proj'),
    o: linear('self_attn.o_proj'),
    queryNorm: at('self_attn.q_norm.weight'),
    keyNorm: at('self_attn.k_norm.weight'),
    mlpNorm: at('post_attention_layernorm.weight')!,
    gate: linear('mlp.gate_proj'),
    up: linear('mlp.up_proj'),
    down: linear('mlp.down_proj'),
  };
}
