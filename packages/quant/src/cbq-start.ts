import { factorMoments, roundingLogit, tensor2d, type AffineBits, type FactoredMoments, type Tensor2D } from '@niwaki/tensor';
import { createBreath, inputGram, type Window } from '@niwaki/engine';
import type { AffineGrid, AffineStep } from '@niwaki/weights';
import type { Site } from '@niwaki/nn';
import { compensatedRounding, usualDamping } from './compensated-rounding.ts';

/** How far an entry starts on its way from where the float matrix has it to the code that GPTQ gives it. */
const lean = 0.6;

/**
 * Second moments of what enters the sites of a window, of all groups in one pass: 4 · in² bytes a group on the device.
 * @param factors on the channels of some inputs, which their matrices are divided by
 * @returns those of one group, factored as GPTQ needs them; to be asked for once
 */
export async function collectMoments(
  window: Window,
  groups: readonly (readonly Site[])[],
  factors: ReadonlyMap<Site, Float32Array>,
): Promise<(group: readonly Site[]) => Promise<FactoredMoments>> {
  const statistics = await window.collect(groups.flat(), { gram: inputGram() });
  return async ([site]) => {
    const { gram } = statistics.get(site!)!;
    const width = gram.shape[0];
    const values = await gram.data();
    // It would stay for as long as the window is fitted.
    gram.dispose();
    const own = factors.get(site!);
    const scaled =
      own === undefined ? values : Float64Array.from(values, (value, i) => value * own[Math.floor(i / width)]! * own[i % width]!);
    return factorMoments(scaled, width, { damping: usualDamping, breath: createBreath() });
  };
}

export interface CompensatedStartOptions {
  readonly shape: readonly [out: number, in_: number];
  readonly bits: AffineBits;
  readonly groupSize: number;
  readonly grid: AffineGrid;
}

/**
 * Rounding logits [out, in] that start each entry on its way to the code, of the two around it, which GPTQ chooses (CBQ's
 * "GPTQ codes as the start"): errors of some entries are made up for by others before anything trains.
 * @param values the matrix, row-major
 * @param steps of its groups
 */
export async function compensatedStart(
  values: Float32Array,
  steps: readonly AffineStep[],
  { factor }: FactoredMoments,
  options: CompensatedStartOptions,
): Promise<Tensor2D> {
  const { shape, groupSize } = options;
  const fractions = new Float32Array(values.length);
  // Beyond the codes there are, below 0 too: such an entry has one code only.
  const below = new Int32Array(values.length);
  for (const [i, value] of values.entries()) {
    const { scale, zero } = steps[Math.floor(i / groupSize)]!;
    const place = scale === 0 ? 0 : Math.fround(value / scale);
    fractions[i] = place - Math.floor(place);
    below[i] = Math.floor(place) + zero;
  }
  const { codes } = await compensatedRounding(Float64Array.from(values), factor, { ...options, steps, below, breath: createBreath() });
  const logits = fractions.map((fraction, i) => roundingLogit(fraction, fraction + lean * (Number(codes[i]! > below[i]!) - fraction)));
  return tensor2d(logits, [...shape]);
}
