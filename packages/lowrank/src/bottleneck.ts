import * as v from 'valibot';
import { add, checkCount, checkOptions, gelu, matMul, zeros, type Json, type Tensor, type Tensor2D } from '@niwaki/tensor';
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
import { sublayerFile } from './sublayer-file.ts';
import { bottleneckWidth, checkSublayer, inSeries, sublayerPoints, uniformStart } from './sublayer.ts';

export interface BottleneckOptions extends Pick<TargetOptions, 'excludeModules' | 'layersToTransform' | 'layersPattern' | 'modulesToSave'> {
  /** Width of the model over that of the bottleneck, default 16. */
  readonly reduction?: number;
}

/** Tensors by slot. */
type Values = Readonly<Record<'down' | 'downBias' | 'up' | 'upBias', Tensor>>;

const slots = {
  down: 'adapter_down.weight',
  downBias: 'adapter_down.bias',
  up: 'adapter_up.weight',
  upBias: 'adapter_up.bias',
} as const;

/**
 * The bottleneck adapter: y + W_up·gelu(W_down·y + b) + c at the output y of attention or feed-forward, before the
 * residual sum (Houlsby et al. 2019; after the feed-forward alone: Pfeiffer et al. 2021). W_up and c start at 0. Trains
 * 2·k·d + d + k numbers a place, k the model's width and d = k / reduction, 4 bytes each; the backward pass keeps y and
 * the bottleneck. Not mergeable.
 * @throws ConfigError for a reduction that does not divide the width
 * @example await adapt(model, bottleneck({ reduction: 16 }), { at: ['**.self_attn', '**.mlp'] });
 */
export function bottleneck(options: BottleneckOptions = {}): AdapterMethod {
  checkOptions('bottleneck', options, ['reduction', 'excludeModules', 'layersToTransform', 'layersPattern', 'modulesToSave']);
  const { reduction = 16, ...targeting } = options;
  checkCount('bottleneck', 'reduction', reduction);
  const settings = { reduction, ...targeting };
  const shapes = (width: number): Record<keyof Values, [number] | [number, number]> => {
    const inner = bottleneckWidth('bottleneck', width, reduction);
    return { down: [inner, width], downBias: [inner], up: [width, inner], upBias: [width] };
  };
  const bind = ({ name, draw }: Pick<Binding, 'name' | 'draw'>): Method<{ width?: number }> =>
    defineMethod({
      kind: 'bottleneck',
      options: settings as unknown as { readonly [name: string]: Json },
      traits: {},
      makes: 'adapter',
      points: sublayerPoints,
      validate: (site, model) => {
        checkSublayer('a bottleneck adapter', site);
        bottleneckWidth('bottleneck', model.info.hiddenSize, reduction);
      },
      plan: async (_, model) => ({ width: model.info.hiddenSize }),
      make: async (site, { width }) => {
        const { down, downBias, up, upBias } = shapes(width!);
        const start = uniformStart(down, width! ** -0.5, draw, parameterPath(site.path, name, slots.down));
        const values = { down: start, downBias: zeros(downBias), up: zeros(up), upBias: zeros(upBias) };
        return { adapter: bottleneckAt(site, values, name) };
      },
    });
  return {
    ...(bind(unbound) as Method),
    file: bottleneckFile,
    targeting: settings,
    slots: Object.values(slots),
    stored: (_, model): StoredShapes => {
      const { down, downBias, up, upBias } = shapes(model.info.hiddenSize);
      return { [slots.down]: down, [slots.downBias]: downBias, [slots.up]: up, [slots.upBias]: upBias };
    },
    rankAt: () => undefined,
    bind: bind as (binding: Binding) => Method,
    restore: async (site, tensors, { name }) => ({
      adapter: bottleneckAt(
        site,
        {
          down: tensors.get(slots.down)!,
          downBias: tensors.get(slots.downBias)!,
          up: tensors.get(slots.up)!,
          upBias: tensors.get(slots.upBias)!,
        },
        name,
      ),
    }),
  };
}

/** `peft_type: BOTTLENECK`. */
export const bottleneckFile: AdapterFile = sublayerFile({
  peftType: 'BOTTLENECK',
  options: { reduction: ['reduction', wholeCount], modulesToSave: ['modules_to_save', v.array(v.string())] },
  make: bottleneck,
});

function bottleneckAt({ path }: Site, values: Values, name: string): Adapter {
  const down = adapterParameter(path, name, slots.down, values.down, 'adapterA');
  const downBias = adapterParameter(path, name, slots.downBias, values.downBias, 'bias');
  const up = adapterParameter(path, name, slots.up, values.up, 'adapterB');
  const upBias = adapterParameter(path, name, slots.upBias, values.upBias, 'bias');
  return {
    kind: 'bottleneck',
    point: 'sublayer',
    parameters: { [slots.down]: down, [slots.downBias]: downBias, [slots.up]: up, [slots.upBias]: upBias },
    apply: inSeries((y, call) => {
      const z = gelu(add(matMul(y, call.value(down) as Tensor2D, false, true), call.value(downBias)), { form: 'tanh' });
      return add(matMul(z as Tensor2D, call.value(up) as Tensor2D, false, true), call.value(upBias));
    }),
    startsFrom: 'base',
  };
}
