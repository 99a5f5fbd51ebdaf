import { ConfigError } from '@niwaki/tensor';
import { configReader, type ConfigReader } from '../config-reader.ts';

/** Rotary positions: base angle, size of a head, and how the angles stretch beyond the trained length. */
export interface RopeConfig {
  readonly theta: number;
  readonly headSize: number;
  readonly scaling: RopeScaling;
}

export type RopeScaling =
  | { readonly type: 'default' }
  | { readonly type: 'linear'; readonly factor: number }
  | { readonly type: 'dynamic'; readonly factor: number; readonly trained: number }
  | { readonly type: 'llama3'; readonly factor: number; readonly low: number; readonly high: number; readonly trained: number }
  | {
      readonly type: 'yarn';
      readonly factor: number;
      readonly trained: number;
      readonly betaFast: number;
      readonly betaSlow: number;
      readonly truncate: boolean;
      /** Multiplies cosines and sines. */
      readonly attention: number;
    }
  | {
      readonly type: 'longrope';
      readonly trained: number;
      /** Divisors of each frequency, up to the trained length and beyond it. */
      readonly short: readonly number[];
      readonly long: readonly number[];
      readonly attention: number;
    };

interface RopeContext {
  readonly family: string;
  readonly headSize: number;
  readonly contextLength: number;
}

/**
 * Reads `rope_parameters` (v5), or `rope_theta` and `rope_scaling` with `rope_type` or `type` (v4).
 * @throws ConfigError for a type we do not know or a field that is missing
 */
export function readRope(config: Readonly<Record<string, unknown>>, context: RopeContext): RopeConfig {
  const { family, headSize, contextLength } = context;
  const nested = config['rope_parameters'] ?? config['rope_scaling'] ?? {};
  if (typeof nested !== 'object' || Array.isArray(nested)) {
    throw new ConfigError(`${family} config: rope_parameters must be an object of settings`, { value: nested, family });
  }
  const fields = nested as Readonly<Record<string, unknown>>;
  const read = configReader(fields, `${family} config: rope_scaling`);
  const partial = fields['partial_rotary_factor'] ?? config['partial_rotary_factor'] ?? 1;
  if (partial !== 1) read.fail('partial_rotary_factor', `is not read for this family, got ${JSON.stringify(partial)}`);
  const theta = configReader({ rope_theta: fields['rope_theta'] ?? config['rope_theta'] }, family).number('rope_theta', 10_000);
  if (!(theta > 0)) read.fail('rope_theta', `must be positive, got ${theta}`);
  const trained = read.integer('original_max_position_embeddings', topLevelTrained(config) ?? contextLength);
  const type = read.text('rope_type', typeof fields['type'] === 'string' ? fields['type'] : 'default');
  return { theta, headSize, scaling: readScaling(type, read, { headSize, contextLength, trained, theta }) };
}

const topLevelTrained = (config: Readonly<Record<string, unknown>>): number | undefined =>
  typeof config['original_max_position_embeddings'] === 'number' ? config['original_max_position_embeddings'] : undefined;

interface ScalingContext {
  readonly headSize: number;
  readonly contextLength: number;
  readonly trained: number;
  readonly theta: number;
}

function readScaling(type: string, read: ConfigReader, { headSize, contextLength, trained }: ScalingContext): RopeScaling {
  switch (type) {
    case 'default':
      return { type };
    case 'linear':
      return { type, factor: factorOf(read) };
    case 'dynamic':
      // The trained length of this kind is the context length itself.
      return { type, factor: factorOf(read), trained: contextLength };
    case 'llama3': {
      const [low, high] = [read.number('low_freq_factor'), read.number('high_freq_factor')];
      if (!(low < high)) read.fail('low_freq_factor', `must be below high_freq_factor = ${high}, got ${low}`);
      return { type, factor: factorOf(read), low, high, trained };
    }
    case 'yarn': {
      const factor = factorOf(read, contextLength / trained);
      const [betaFast, betaSlow] = [read.number('beta_fast', 32), read.number('beta_slow', 1)];
      return { type, factor, trained, betaFast, betaSlow, truncate: read.flag('truncate', true), attention: yarnAttention(read, factor) };
    }
    case 'longrope': {
      const [short, long] = [divisors(read, 'short_factor', headSize), divisors(read, 'long_factor', headSize)];
      const stretch = contextLength / trained;
      const attention = read.number('attention_factor', stretch > 1 ? Math.sqrt(1 + Math.log(stretch) / Math.log(trained)) : 1);
      return { type, trained, short, long, attention };
    }
    default:
      return read.fail('rope_type', `'${type}' is not known; known: default, linear, dynamic, llama3, yarn, longrope`);
  }
}

function factorOf(read: ConfigReader, fallback?: number): number {
  const factor = read.number('factor', fallback);
  return factor >= 1 ? factor : read.fail('factor', `must be at least 1, got ${factor}`);
}

function yarnAttention(read: ConfigReader, factor: number): number {
  const growth = (scale: number): number => (factor <= 1 ? 1 : 0.1 * scale * Math.log(factor) + 1);
  const given = read.raw('attention_factor');
  if (typeof given === 'number') return read.number('attention_factor');
  // Zero counts as absent in the files that carry these two.
  if (read.raw('mscale') && read.raw('mscale_all_dim')) return growth(read.number('mscale')) / growth(read.number('mscale_all_dim'));
  return growth(1);
}

function divisors(read: ConfigReader, field: string, headSize: number): readonly number[] {
  const list = read.numbers(field);
  if (list.length !== headSize / 2) read.fail(field, `must list head_dim / 2 = ${headSize / 2} divisors, lists ${list.length}`);
  if (!list.every((divisor) => divisor > 0)) read.fail(field, 'must be positive');
  return list;
}
