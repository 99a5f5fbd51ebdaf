import { checkOneOf, checkOptions, nounWith, outOfRange, type Json, type Noun } from '@niwaki/tensor';
import { checkRate } from './scale-by-learning-rate.ts';

/** The learning rate of each step of a run: a pure function, and data in a recipe. */
export interface Schedule {
  readonly kind: string;
  readonly options: { readonly [name: string]: Json };
  /** @param step from 0 @param steps of the whole run */
  rate(step: number, steps: number): number;
  toJSON(): { readonly kind: string; readonly [name: string]: Json };
}

export interface WarmupOptions {
  /** The highest rate. */
  readonly learningRate: number;
  /**
   * Steps in which the rate grows to its highest in equal parts; below 1, that part of the run. Step 0 has
   * learningRate / warmup, not 0: no step is spent on standing still. Default 0.
   */
  readonly warmup?: number;
}

export interface DecayOptions extends WarmupOptions {
  /** Where the rate goes, as a part of the highest; reached one step after the last. Default 0. */
  readonly floor?: number;
}

export interface WsdOptions extends DecayOptions {
  /** Steps of the decay at the end; below 1, that part of the run. Default 0.1. */
  readonly decay?: number;
  /** 'sqrt' falls as 1 - √t, faster at first (Hägele et al. 2024); default 'linear'. */
  readonly shape?: 'linear' | 'sqrt';
}

const warmupNames = ['learningRate', 'warmup'] as const;
const decayNames = [...warmupNames, 'floor'] as const;

/** The same rate after the warm-up. */
export function constant(options: WarmupOptions): Schedule {
  checkOptions('constant', options, warmupNames);
  return schedule('constant', options, () => 1);
}

/** Down to the floor in a straight line. */
export function linear(options: DecayOptions): Schedule {
  checkOptions('linear', options, decayNames);
  return schedule('linear', options, (done) => towards(options, 1 - done));
}

/** Down to the floor along half a cosine (Loshchilov & Hutter 2017). */
export function cosine(options: DecayOptions): Schedule {
  checkOptions('cosine', options, decayNames);
  return schedule('cosine', options, (done) => towards(options, (1 + Math.cos(Math.PI * done)) / 2));
}

/** Warm-up, stable, decay: constant until the last part of the run (Hu et al. 2024). */
export function wsd(options: WsdOptions): Schedule {
  checkOptions('wsd', options, [...decayNames, 'decay', 'shape']);
  const { decay = 0.1, shape = 'linear' } = options;
  if (!(decay >= 0)) throw outOfRange('wsd', 'decay', decay, 'a number of at least 0');
  checkOneOf('wsd', 'shape', shape, ['linear', 'sqrt']);
  return schedule('wsd', options, (_, step, steps) => {
    const length = stepsOf(decay, steps);
    const done = length === 0 ? 0 : Math.max(0, (step - (steps - length)) / length);
    return towards(options, shape === 'linear' ? 1 - done : 1 - Math.sqrt(done));
  });
}

/** Schedules by kind, for recipes. */
export const schedules: Readonly<Record<string, (options: WsdOptions) => Schedule>> = { constant, linear, cosine, wsd };

const towards = ({ floor = 0 }: DecayOptions, part: number): number => floor + (1 - floor) * part;
const stepsOf = (amount: number, steps: number): number => (amount < 1 ? Math.round(amount * steps) : amount);

/** @param factor of the highest rate, given the part of the steps after the warm-up that is done, [0, 1) */
function schedule(kind: string, options: DecayOptions, factor: (done: number, step: number, steps: number) => number): Schedule {
  const { learningRate, warmup = 0, floor = 0 } = options;
  checkRate(kind, learningRate);
  if (!(warmup >= 0)) throw outOfRange(kind, 'warmup', warmup, 'a number of at least 0');
  if (!(floor >= 0 && floor <= 1)) throw outOfRange(kind, 'floor', floor, 'in [0, 1]');
  const data = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as { [name: string]: Json };
  return {
    kind,
    options: data,
    rate: (step, steps) => {
      const warm = Math.min(stepsOf(warmup, steps), steps);
      if (step < warm) return (learningRate * (step + 1)) / warm;
      const done = steps > warm ? Math.min(1, (step - warm) / (steps - warm)) : 1;
      return learningRate * factor(done, step, steps);
    },
    toJSON: () => ({ kind, ...data }),
  };
}

export const aSchedule: Noun = nounWith('a schedule, as cosine() gives it', 'rate', 'toJSON');
