import { checkOptions, ConfigError, NotFoundError, outOfRange } from '@niwaki/tensor';
import type { Window } from '@niwaki/engine';
import { onScaledChannels, tensorQuantizer, tokenQuantizer, type ActivationQuantizer, type TensorQuantizer } from '@niwaki/weights';
import type { Group } from '@niwaki/optim';
import type { Model, Site } from '@niwaki/nn';
import { activationNames, activationOptions, tensorSteps, type ActivationOptions } from './activations.ts';

const operands = ['queries', 'keys', 'values'] as const;
export type Operand = (typeof operands)[number];

export interface CbqActivations extends Omit<ActivationOptions, 'outlierThreshold'> {
  /** 'token' (default): each row over its own range, as it comes. 'tensor': one step a site, which trains with its window. */
  readonly per?: 'token' | 'tensor';
  /** Learning rate of the steps, as a part of what each is when its window begins; default 1e-3. Adam. */
  readonly learningRate?: number;
  /** Operands of attention that are rounded too, per token: 'queries', 'keys', 'values'. Default none. */
  readonly attention?: readonly Operand[];
}

export type RoundedActivations = Required<CbqActivations>;

/** @throws ConfigError naming the field */
export function cbqActivations(options: CbqActivations): RoundedActivations {
  if (typeof options !== 'object' || options === null) throw outOfRange('cbq', 'activations', options, 'an object of options');
  const what = 'cbq: activations';
  checkOptions(what, options, [...activationNames, 'learningRate', 'attention']);
  const { learningRate = 1e-3, attention = [] } = options;
  const named = activationOptions(what, options);
  if (!(learningRate >= 0 && learningRate < Infinity)) {
    throw outOfRange(what, 'learningRate', learningRate, 'a finite number of at least 0');
  }
  if (!Array.isArray(attention)) throw outOfRange(what, 'attention', attention, `a list of ${operands.join(', ')}`);
  for (const name of attention as readonly string[]) {
    if (name === 'probabilities') {
      throw new ConfigError(`${what}: probabilities cannot be rounded: the attention kernel never has them all`, {
        field: 'attention',
        given: name,
        help: `Name ${operands.join(', ')}.`,
      });
    }
    if (!operands.includes(name as Operand)) throw outOfRange(what, 'attention', attention, `a list of ${operands.join(', ')}`);
  }
  return { ...named, learningRate, attention: [...attention] };
}

const moduleOf = (path: string): string => path.slice(0, path.lastIndexOf('.'));

/**
 * The operands that the attention modules of some sites have.
 * @throws ConfigError where a name finds none: a family may have no sites for them
 */
export function operandsOf(sites: readonly Site[], model: Model, names: readonly Operand[]): readonly Site[] {
  const modules = new Set(sites.map(({ path }) => moduleOf(path)));
  return names.flatMap((name) => {
    try {
      return model.sites(({ path }) => path.endsWith(`.${name}`) && modules.has(moduleOf(path)), { points: ['operand'] });
    } catch (error) {
      if (!(error instanceof NotFoundError)) throw error;
      throw new ConfigError(`cbq: the model has no ${name} of attention that could be rounded beside the selected sites`, {
        operand: name,
        cause: error,
        help: 'Select maps of attention, or leave `activations.attention` away.',
      });
    }
  });
}

/** What rounds the inputs of sites from now on, lent: steps that train, or rows over their own ranges. */
export async function lendInputs(
  window: Window,
  sites: readonly Site[],
  { per, bits, symmetric }: RoundedActivations,
  factors: ReadonlyMap<Site, Float32Array>,
): Promise<void> {
  const grid = { bits, symmetric };
  const steps = per === 'tensor' ? await tensorSteps(window, sites, grid, factors) : undefined;
  for (const site of sites) {
    const step = steps?.get(site);
    const base: ActivationQuantizer = step === undefined ? tokenQuantizer(grid) : tensorQuantizer(site.path, step, grid);
    const own = factors.get(site);
    window.lendInput(site, own === undefined ? base : onScaledChannels(site.path, base, own));
  }
}

/** The quantizers of a window's sites whose steps train, and the rate of each as a group of an optimizer with `learningRate`. */
export async function trainedInputs(
  window: Window,
  { learningRate: part }: RoundedActivations,
  learningRate: number,
): Promise<{ readonly quantizers: readonly TensorQuantizer[]; readonly groups: readonly Group[] }> {
  const quantizers = window.groups.flat().flatMap((site) => {
    const input = window.lentInput(site);
    return input?.per === 'tensor' ? [input as TensorQuantizer] : [];
  });
  const groups = quantizers.map(async ({ step }): Promise<Group> => {
    const [scale] = await step.read().data();
    return { at: `^${step.path}`, rateScale: (part * scale!) / learningRate };
  });
  return { quantizers, groups: await Promise.all(groups) };
}
