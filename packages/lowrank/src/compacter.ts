import * as v from 'valibot';
import {
  add,
  checkCount,
  checkFlag,
  checkOptions,
  ConfigError,
  denseParameter,
  gelu,
  mul,
  noise,
  outOfRange,
  StateError,
  tidy,
  zeros,
  type Draw,
  type Json,
  type Parameter,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import { defineMethod, type Method } from '@niwaki/engine';
import type { Adapter, Site } from '@niwaki/nn';
import {
  adapterParameter,
  parameterPath,
  unbound,
  wholeCount,
  type AdapterFile,
  type AdapterMethod,
  type Binding,
  type StoredShapes,
  type TargetOptions,
} from '@niwaki/peft';
import { hypercomplex } from './hypercomplex.ts';
import { sublayerFile } from './sublayer-file.ts';
import { bottleneckWidth, checkSublayer, inSeries, sublayerPoints, uniformStart } from './sublayer.ts';

export interface CompacterOptions extends Pick<TargetOptions, 'excludeModules' | 'layersToTransform' | 'layersPattern'> {
  /** Summands and blocks of each projection, default 4; it divides the width and the bottleneck. */
  readonly division?: number;
  /** Width of the model over that of the bottleneck, default 32. */
  readonly reduction?: number;
  /** Of the blocks s_i·t_i, default 1. */
  readonly rank?: number;
  /** Standard deviation of the shared matrices at the start, default 1e-4. */
  readonly ruleRange?: number;
  /** Trains copies of all layer norms too, as the paper does; default true. */
  readonly trainNorms?: boolean;
}

type Settings = Required<Pick<CompacterOptions, 'division' | 'reduction' | 'rank' | 'ruleRange' | 'trainNorms'>> & TargetOptions;

const ruleSlot = 'phm_rule';
const slots = ['adapter_down_s', 'adapter_down_t', 'adapter_down.bias', 'adapter_up_s', 'adapter_up_t', 'adapter_up.bias'] as const;
type Slot = (typeof slots)[number];

/**
 * Compacter (Mahabadi et al. 2021): a bottleneck adapter, y + up(gelu(down(y))), whose two matrices are sums of `division`
 * Kronecker products A_i ⊗ (s_i·t_i). The A_i are one small parameter for the whole model; s_i, t_i and biases are each
 * place's own. Trains 2·rank·(k + d) + k + d numbers a place, division³ once, and the norms; starts next to the base,
 * 1e-8 apart. At the output of attention and feed-forward (Compacter++: `at: '**.mlp'`). Not mergeable.
 * @throws ConfigError for a division that divides not both widths, naming the numbers
 * @example await adapt(model, compacter({ reduction: 16 }), { at: ['**.self_attn', '**.mlp'] });
 */
export function compacter(options: CompacterOptions = {}): AdapterMethod {
  const settings = compacterSettings(options);
  const bind = ({ name, draw }: Pick<Binding, 'name' | 'draw'>): Method<{ rule?: Parameter; width?: number }> =>
    defineMethod({
      kind: 'compacter',
      options: settings as unknown as { readonly [name: string]: Json },
      traits: {},
      makes: 'adapter',
      points: sublayerPoints,
      validate: (site, model) => {
        checkSublayer('compacter', site);
        shapesOf(model.info.hiddenSize, settings);
      },
      plan: async (_, model) => ({ rule: ruleOf(startRule(settings, draw), name), width: model.info.hiddenSize }),
      make: async (site, { rule, width }) => {
        const values = startValues(site, shapesOf(width!, settings), { name, draw });
        return { adapter: compacterAt(site, rule!, values, name) };
      },
    });
  return {
    ...(bind(unbound) as Method),
    file: compacterFile,
    targeting: settings,
    slots,
    stored: (_, model): StoredShapes => shapesOf(model.info.hiddenSize, settings),
    rankAt: () => undefined,
    shared: {
      slots: [ruleSlot],
      stored: () => ({ [ruleSlot]: [settings.division, settings.division, settings.division] }),
      restore: (sites, tensors, { name }, ofSite) => {
        const rule = ruleOf(tensors.get(ruleSlot)!, name);
        return new Map(sites.map((site) => [site.path, compacterAt(site, rule, ofSite.get(site.path)!, name)]));
      },
    },
    bind: bind as (binding: Binding) => Method,
    restore: () => {
      throw new StateError('internal: places of compacter share a tensor and are restored together');
    },
  };
}

/** `peft_type: COMPACTER`. */
export const compacterFile: AdapterFile = sublayerFile({
  peftType: 'COMPACTER',
  options: {
    division: ['hypercomplex_division', wholeCount],
    reduction: ['reduction', wholeCount],
    rank: ['phm_rank', wholeCount],
    ruleRange: ['phm_init_range', v.number()],
    trainNorms: ['unfreeze_layer_norms', v.boolean()],
  },
  make: compacter,
});

function compacterSettings(options: CompacterOptions): Settings {
  checkOptions('compacter', options, [
    'division',
    'reduction',
    'rank',
    'ruleRange',
    'trainNorms',
    'excludeModules',
    'layersToTransform',
    'layersPattern',
  ]);
  const { division = 4, reduction = 32, rank = 1, ruleRange = 1e-4, trainNorms = true, ...targeting } = options;
  for (const [field, value] of Object.entries({ division, reduction, rank })) checkCount('compacter', field, value);
  if (!(Number.isFinite(ruleRange) && ruleRange > 0)) throw outOfRange('compacter', 'ruleRange', ruleRange, 'a finite number above 0');
  checkFlag('compacter', 'trainNorms', trainNorms);
  // Names are ends of paths: this is every norm of the model.
  return { ...targeting, division, reduction, rank, ruleRange, trainNorms, ...(trainNorms && { modulesToSave: ['norm'] }) };
}

function shapesOf(width: number, { division, reduction, rank }: Settings): Record<Slot, number[]> {
  const inner = bottleneckWidth('compacter', width, reduction);
  for (const side of [width, inner]) {
    if (side % division === 0) continue;
    throw new ConfigError(`compacter: a division of ${division} does not divide ${side}, a side of the projections [${width}, ${inner}]`, {
      field: 'division',
      division,
      width,
      bottleneck: inner,
    });
  }
  const factors = (from: number, to: number): [number[], number[]] => [
    [division, from / division, rank],
    [division, rank, to / division],
  ];
  const [downS, downT] = factors(width, inner);
  const [upS, upT] = factors(inner, width);
  return {
    adapter_down_s: downS,
    adapter_down_t: downT,
    'adapter_down.bias': [inner],
    adapter_up_s: upS,
    adapter_up_t: upT,
    'adapter_up.bias': [width],
  };
}

const rulePath = (name: string): string => `${ruleSlot}.${name}`;
const ruleOf = (value: Tensor, name: string): Parameter => denseParameter(rulePath(name), value, { role: 'factor', trainable: true });

const startRule = ({ division: n, ruleRange }: Settings, draw: Draw): Tensor =>
  tidy(() => mul(noise([n, n, n], draw.at(`${ruleSlot}#init`), 'gaussian'), ruleRange));

/** Glorot's uniform with gain √2 for each s_i and t_i, biases 0. */
function startValues(
  { path }: Site,
  shapes: Record<Slot, number[]>,
  { name, draw }: Pick<Binding, 'name' | 'draw'>,
): ReadonlyMap<string, Tensor> {
  return new Map(
    slots.map((slot) => {
      const shape = shapes[slot];
      if (shape.length === 1) return [slot, zeros(shape)];
      const bound = Math.sqrt(12 / (shape[1]! + shape[2]!));
      return [slot, uniformStart(shape, bound, draw, parameterPath(path, name, slot))];
    }),
  );
}

/** @param values by slot; the adapter takes them over */
function compacterAt({ path }: Site, rule: Parameter, values: ReadonlyMap<string, Tensor>, name: string): Adapter {
  const own = Object.fromEntries(
    slots.map((slot) => [slot, adapterParameter(path, name, slot, values.get(slot)!, slot.endsWith('.bias') ? 'bias' : 'factor')]),
  ) as Record<Slot, Parameter>;
  return {
    kind: 'compacter',
    point: 'sublayer',
    parameters: { [ruleSlot]: rule, ...own },
    apply: inSeries((y, call) => {
      const project = (x: Tensor2D, side: 'down' | 'up'): Tensor2D => {
        const [s, t] = [call.value(own[`adapter_${side}_s`]), call.value(own[`adapter_${side}_t`])];
        return add(hypercomplex(x, { rule: call.value(rule), s, t }), call.value(own[`adapter_${side}.bias`])) as Tensor2D;
      };
      return project(gelu(project(y, 'down'), { form: 'tanh' }), 'up');
    }),
    startsFrom: 'near',
  };
}
