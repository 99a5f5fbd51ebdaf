import { gather, reshape, tensor2d, tidy, tile, type Tensor, type Tensor1D, type Tensor2D } from '@niwaki/tensor';
import { DataError } from '@niwaki/tensor';
import type { RopeConfig } from './rope-config.ts';

/** Radians per position of each pair of entries, and the factor on cosines and sines. */
export interface RopeFrequencies {
  readonly perPosition: Float32Array;
  readonly attention: number;
}

/**
 * The d/2 frequencies of a head, theta^(-2i/d), stretched as the config says (RoFormer; PI; NTK-aware dynamic; Llama 3; YaRN; LongRoPE).
 * @param length positions in play, cached ones included: the dynamic kinds follow it
 */
export function ropeFrequencies({ theta, headSize: d, scaling }: RopeConfig, length: number): RopeFrequencies {
  const pairs = Array.from({ length: d / 2 }, (_, i) => i);
  const plain = (base: number): number[] => pairs.map((i) => base ** ((-2 * i) / d));
  const done = (values: readonly number[], attention = 1): RopeFrequencies => ({ perPosition: Float32Array.from(values), attention });
  const base = plain(theta);
  switch (scaling.type) {
    case 'default':
      return done(base);
    case 'linear':
      return done(base.map((f) => f / scaling.factor));
    case 'dynamic': {
      const s = Math.max(length, scaling.trained);
      const stretched = theta * ((scaling.factor * s) / scaling.trained - (scaling.factor - 1)) ** (d / (d - 2));
      return done(plain(stretched));
    }
    case 'llama3': {
      const { factor, low, high, trained } = scaling;
      return done(
        base.map((f) => {
          const wavelength = (2 * Math.PI) / f;
          if (wavelength > trained / low) return f / factor;
          if (wavelength < trained / high) return f;
          const smooth = (trained / wavelength - low) / (high - low);
          return ((1 - smooth) * f) / factor + smooth * f;
        }),
      );
    }
    case 'yarn': {
      const { factor, trained, betaFast, betaSlow, truncate, attention } = scaling;
      // The pair whose wavelength turns `n` times within the trained length.
      const pairAt = (n: number): number => (d * Math.log(trained / (2 * Math.PI * n))) / (2 * Math.log(theta));
      const round = (x: number, to: (x: number) => number): number => (truncate ? to(x) : x);
      const from = Math.max(round(pairAt(betaFast), Math.floor), 0);
      const to = Math.min(round(pairAt(betaSlow), Math.ceil), d - 1);
      const span = to === from ? 0.001 : to - from;
      const ramp = (i: number): number => Math.min(Math.max((i - from) / span, 0), 1);
      return done(
        base.map((f, i) => (f / factor) * ramp(i) + f * (1 - ramp(i))),
        attention,
      );
    }
    case 'longrope': {
      const divisors = length > scaling.trained ? scaling.long : scaling.short;
      return done(
        base.map((f, i) => f / divisors[i]!),
        scaling.attention,
      );
    }
  }
}

export interface RopeTables {
  readonly cos: Tensor2D;
  readonly sin: Tensor2D;
}

export interface RopePositions {
  readonly batch: number;
  readonly time: number;
  /** Positions already cached before this pass. */
  readonly past: number;
  /** Position of each token, [batch · time] numbers or int32 [batch, time] below past + time; default past, past + 1, … in each row. */
  readonly given?: Tensor | readonly number[] | undefined;
}

/**
 * Cosines and sines of every token, [batch · time, d / 2] f32. Angles are products of f32 numbers and their cosines are
 * taken on the host: WGSL leaves the precision of large angles open, and products in half precision break after a few
 * hundred tokens.
 */
export function ropeTables(config: RopeConfig, { batch, time, past, given }: RopePositions): RopeTables {
  const frequencies = ropeFrequencies(config, past + time);
  if (given === undefined) {
    const rows = Array.from({ length: time }, (_, i) => past + i);
    return mapTables(tablesOf(frequencies, rows), (table) => tile(table, [batch, 1]));
  }
  if (isTensor(given)) {
    const all = Array.from({ length: past + time }, (_, i) => i);
    return mapTables(tablesOf(frequencies, all), (table) => gather(table, reshape(given, [batch * time]) as Tensor1D));
  }
  if (given.length !== batch * time || !given.every((position) => Number.isInteger(position) && position >= 0)) {
    throw new DataError(`positions must be ${batch} x ${time} whole numbers from 0`, { given: given.length, batch, time });
  }
  return tablesOf(frequencies, given);
}

const isTensor = (value: Tensor | readonly number[]): value is Tensor => 'dtype' in value;

function mapTables({ cos, sin }: RopeTables, map: (table: Tensor2D) => Tensor2D): RopeTables {
  return { cos: tidy(() => map(cos)), sin: tidy(() => map(sin)) };
}

function tablesOf({ perPosition, attention }: RopeFrequencies, positions: readonly number[]): RopeTables {
  const half = perPosition.length;
  const [cos, sin] = [new Float32Array(positions.length * half), new Float32Array(positions.length * half)];
  const rowOf = new Map<number, number>();
  for (const [row, position] of positions.entries()) {
    const same = rowOf.get(position);
    if (same !== undefined) {
      for (const table of [cos, sin]) table.copyWithin(row * half, same * half, (same + 1) * half);
      continue;
    }
    rowOf.set(position, row);
    for (let i = 0; i < half; i++) {
      const angle = Math.fround(position * perPosition[i]!);
      cos[row * half + i] = Math.cos(angle) * attention;
      sin[row * half + i] = Math.sin(angle) * attention;
    }
  }
  const shape: [number, number] = [positions.length, half];
  return { cos: tensor2d(cos, shape), sin: tensor2d(sin, shape) };
}
