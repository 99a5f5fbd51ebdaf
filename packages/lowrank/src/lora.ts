import { ConfigError, ShapeError, tidy, zeros, type Json, type Tensor, type Tensor1D, type Tensor2D, type Traits } from '@niwaki/tensor';
import { defineMethod, type Method } from '@niwaki/engine';
import { disposeWeight } from '@niwaki/weights';
import type { Model, Site } from '@niwaki/nn';
import {
  checkRewritable,
  parameterPath,
  unbound,
  type AdapterFile,
  type AdapterMethod,
  type Binding,
  type PortableForm,
  type Restored,
  type StoredShapes,
} from '@niwaki/peft';
import { columnNorms, rowNorms } from './direction.ts';
import { initialEmbedding, initializerOf, type InitContext, type InitialPair, type Initializer } from './initialization.ts';
import type { LoraSpec } from './lora-adapter.ts';
import { loraEmbedding, tableFactors } from './lora-embedding.ts';
import { loraFileOf } from './lora-file.ts';
import { loraLinear } from './lora-linear.ts';
import { loraScale, loraSettings, type LoraOptions, type LoraSettings } from './lora-options.ts';
import { valueFor, warnUnused } from './patterns.ts';
import { portableSettings, portableTensors } from './portable.ts';
import { takeScales } from './take-scales.ts';

/**
 * Low-rank adaptation of linear maps and embeddings (Hu et al. 2021), with rsLoRA's scale and DoRA's direction as options.
 * Trains rank·(in + out) numbers a site (+ out for DoRA), 4 bytes each; the base stays frozen, and may be quantized.
 * @throws ConfigError that names the field, the value and the range
 * @example await adapt(model, lora({ rank: 16, alpha: 32 }), { at: ['q_proj', 'v_proj'] });
 */
export function lora(options: LoraOptions = {}): AdapterMethod {
  const settings = loraSettings(options);
  const start = initializerOf(settings.init);
  const bind = (binding: Binding): Method => defineMethod({ ...shared, ...making(settings, binding) });
  const shared = {
    kind: 'lora',
    title: `${settings.dora ? 'dora' : 'lora'}${start.rewrites === undefined ? '' : ` (${start.name})`}`,
    options: asJson(settings),
    traits: loraTraits(settings, start),
    makes: 'adapter' as const,
    validate: (site: Site, model: Model) => checkSite(site, settings, model),
  };
  return {
    ...bind(unbound),
    file: loraFile,
    targeting: settings,
    slots: ['lora_A.weight', 'lora_B.weight', 'lora_B.bias', 'lora_embedding_A', 'lora_embedding_B', 'lora_magnitude_vector'],
    stored: (site) => storedShapes(site, settings),
    rankAt: (site) => rankOf(site, settings),
    bind,
    ...(start.portable && { portable: doubledPairs }),
    ...(start.rewrites && { rewrites: start.rewrites, repeatable: start.repeatable ?? false }),
    restore: (site, tensors, binding) => restoreLora(site, tensors, binding, settings),
    takeOver: (set, from) => lora(takeScales(set, from)),
  };
}

function loraTraits({ dora, loraBias }: LoraSettings, { rewrites }: Initializer): Traits {
  const gives = dora || loraBias ? (['merge'] as const) : (['merge', 'delta'] as const);
  if (rewrites === undefined) return { gives, needs: ['base-values'] };
  const help = { floats: 'Start from a model that is not quantized yet, and pass the quantizer: pissa({ quantizer: nf4() }).' };
  // What is left of the matrix: f32, or codes.
  const left = rewrites === 'residual' ? (['floats', 'trains', 'encode', 'lookup'] as const) : (['encode', 'lookup'] as const);
  return { gives: [...gives, ...left], needs: ['floats'], forbids: ['zeros'], claims: ['base-values'], help };
}

/** Files of LoRA, rsLoRA and DoRA, and of all starts. */
export const loraFile: AdapterFile = loraFileOf(lora);

const doubledPairs: PortableForm = {
  method: ({ method }) => lora(portableSettings((method as AdapterMethod).targeting as LoraSettings)),
  tensors: portableTensors,
};

/** LoRA with a trained magnitude for each output row (Liu et al. 2024): `lora({ dora: true })`. */
export const dora = (options: Omit<LoraOptions, 'dora'> = {}): AdapterMethod => lora({ ...options, dora: true });

const asJson = ({ init, ...settings }: LoraSettings): { readonly [name: string]: Json } =>
  ({
    ...settings,
    init: typeof init !== 'object' ? init : init.options === undefined ? init.name : { name: init.name, ...init.options },
  }) as unknown as { readonly [name: string]: Json };

const isEmbedding = (site: Site): boolean => site.point === 'embedding';

function checkSite(site: Site, settings: LoraSettings, model: Model): void {
  const { path, point, weight } = site;
  if (!['linear', 'head', 'embedding'].includes(point) || weight === undefined) {
    throw new ConfigError(`a low-rank pair goes to linear maps and embeddings, '${path}' is a ${point}`, { path, point });
  }
  if (isEmbedding(site) && settings.loraBias) {
    throw new ConfigError('loraBias is for linear maps: a lookup has no bias', {
      path,
      field: 'loraBias',
      help: 'Leave embeddings out, or loraBias off.',
    });
  }
  const rank = rankOf(site, settings);
  const [out, width] = weight.shape;
  if (rank > Math.min(out, width)) {
    throw new ShapeError(`rank ${rank} is larger than a side of the matrix [${out}, ${width}]`, {
      path,
      rank,
      shape: weight.shape,
      help: `Use a rank of at most ${Math.min(out, width)} here (rankPattern), or train the module whole (modulesToSave).`,
    });
  }
  const start = initializerOf(settings.init);
  if (start.rewrites !== undefined) checkRewritable(site, start, model);
  if (!isEmbedding(site)) start.check?.({ out, in: width, rank, site, model });
}

const rankOf = (site: Site, { rank, rankPattern }: LoraSettings): number => valueFor(rankPattern, site.path, rank);
const alphaOf = (site: Site, { alpha, alphaPattern }: LoraSettings): number => valueFor(alphaPattern, site.path, alpha);

const specOf = (site: Site, rank: number, settings: LoraSettings, binding: Binding): LoraSpec => ({
  path: site.path,
  point: site.point,
  name: binding.name,
  rank,
  alpha: alphaOf(site, settings),
  rslora: settings.rslora,
  dropout: settings.dropout,
  ownBias: binding.biasOf(site),
});

function making(settings: LoraSettings, binding: Binding): Pick<Method, 'plan' | 'make'> {
  const start = initializerOf(settings.init);
  return {
    plan: async (sites, model) => {
      const paths = sites.map((site) => site.path);
      warnUnused('rankPattern', settings.rankPattern, paths, binding.warn);
      warnUnused('alphaPattern', settings.alphaPattern, paths, binding.warn);
      const planned = await start.plan?.(
        sites.map((site) => contextOf(site, rankOf(site, settings), settings, binding)),
        model,
      );
      return planned === undefined ? {} : { starts: planned };
    },
    make: (site, { starts }) => startLora(site, settings, binding, (starts as ReadonlyMap<string, unknown> | undefined)?.get(site.path)),
  };
}

function contextOf(site: Site, rank: number, settings: LoraSettings, binding: Binding, planned?: unknown): InitContext {
  const weight = site.weight!;
  const [out, width] = weight.shape;
  const scale = loraScale(alphaOf(site, settings), rank, settings.rslora);
  const slots = isEmbedding(site) ? ['lora_embedding_A', 'lora_embedding_B'] : ['lora_A.weight', 'lora_B.weight'];
  const [aPath, bPath] = slots.map((slot) => parameterPath(site.path, binding.name, slot)) as [string, string];
  return { out, in: width, rank, scale, draw: binding.draw, aPath, bPath, weight, site, planned };
}

async function startLora(site: Site, settings: LoraSettings, binding: Binding, planned: unknown): Promise<Restored> {
  const spec = specOf(site, rankOf(site, settings), settings, binding);
  const context = contextOf(site, spec.rank, settings, binding, planned);
  const { weight, scale, out } = context;
  if (isEmbedding(site)) {
    const { a, b } = initialEmbedding(settings.init, context);
    const magnitude = settings.dora ? (tidy(() => columnNorms(weight, tableFactors({ a, b }), scale)) as Tensor1D) : undefined;
    return { adapter: loraEmbedding(spec, { a, b, magnitude }) };
  }
  const start = initializerOf(settings.init);
  const { a, b, base } = await start.linear(context);
  const adapter = loraLinear(spec, {
    a,
    b,
    bias: settings.loraBias ? (zeros([out]) as Tensor1D) : undefined,
    magnitude: settings.dora ? rowNorms(base ?? weight, { a, b }, scale) : undefined,
    ...(start.portable && { start: { a: a.clone(), b: b.clone() } }),
    rewrites: start.rewrites,
  });
  return base === undefined ? { adapter } : { adapter, weight: base };
}

async function restoreLora(site: Site, tensors: ReadonlyMap<string, Tensor>, binding: Binding, settings: LoraSettings): Promise<Restored> {
  const get = <T extends Tensor>(slot: string): T => tensors.get(slot) as T;
  const magnitude = tensors.get('lora_magnitude_vector') as Tensor1D | undefined;
  if (isEmbedding(site)) {
    const a = get<Tensor2D>('lora_embedding_A');
    return { adapter: loraEmbedding(specOf(site, a.shape[0], settings, binding), { a, b: get('lora_embedding_B'), magnitude }) };
  }
  const [a, b] = [get<Tensor2D>('lora_A.weight'), get<Tensor2D>('lora_B.weight')];
  const bias = tensors.get('lora_B.bias') as Tensor1D | undefined;
  const spec = specOf(site, a.shape[0], settings, binding);
  const start = initializerOf(settings.init);
  if (start.rewrites === undefined) return { adapter: loraLinear(spec, { a, b, bias, magnitude }) };
  const { base, ...first } = (await start.linear(contextOf(site, spec.rank, settings, binding))) as Required<InitialPair>;
  try {
    return { adapter: loraLinear(spec, { a, b, bias, magnitude, start: first, rewrites: start.rewrites }), weight: base };
  } catch (error) {
    disposeWeight(base);
    throw error;
  }
}

function storedShapes(site: Site, { loraBias, dora }: LoraSettings): StoredShapes {
  const [out, width] = site.weight!.shape;
  if (isEmbedding(site))
    return { lora_embedding_A: ['rank', out], lora_embedding_B: [width, 'rank'], ...(dora && { lora_magnitude_vector: [width] }) };
  return {
    'lora_A.weight': ['rank', width],
    'lora_B.weight': [out, 'rank'],
    ...(loraBias && { 'lora_B.bias': [out] }),
    ...(dora && { lora_magnitude_vector: [out] }),
  };
}
