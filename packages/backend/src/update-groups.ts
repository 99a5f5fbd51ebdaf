import { fillNoise, leastRange, type UpdateGroupsAttributes } from '@niwaki/tensor';

/** A matrix in groups of 8-bit codes, in the memory of the host or of the wasm device. */
export interface HostGroups {
  readonly codes: Uint8Array;
  readonly scales: Float32Array;
  readonly zeros: Uint8Array;
}

const { fround } = Math;
const floor = fround(leastRange);
/** Half to even, for numbers far below 2^51. */
const roundToEven = (x: number): number => x + 6755399441055744 - 6755399441055744;
const clamp = (x: number): number => (x < 0 ? 0 : x > 255 ? 255 : x);

/** Draws are made for about this many entries at a time. */
const drawnAtOnce = 4096;

/** One group after another: the same bits as the op's reference, without a tensor of the matrix's size. */
export function updateGroupsInto(old: HostGroups, update: Float32Array, next: HostGroups, attributes: UpdateGroupsAttributes): void {
  const { length, groupSize, shrink, stochastic } = attributes;
  const values = new Float32Array(groupSize);
  const draws = new Float32Array(stochastic ? groupSize * Math.ceil(drawnAtOnce / groupSize) : 0);
  next.codes.fill(0, length);
  next.zeros.fill(0, Math.ceil(length / groupSize));
  for (let group = 0, from = 0; from < length; group++, from += groupSize) {
    const count = Math.min(groupSize, length - from);
    const drawn = from % draws.length;
    if (stochastic && drawn === 0) {
      const some = draws.subarray(0, Math.min(draws.length, length - from));
      fillNoise(some, { ...attributes, length: some.length, distribution: 'uniform', keep: 1 }, { first: from });
    }
    const [oldScale, oldZero] = [old.scales[group]!, old.zeros[group]!];
    let low = 0;
    let high = 0;
    for (let i = 0; i < count; i++) {
      const before = fround(fround((old.codes[from + i]! - oldZero) * oldScale) * shrink);
      const value = fround(before + update[from + i]!);
      values[i] = value;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    const scale = fround(Math.max(fround(high - low), floor) / 255);
    const zero = clamp(roundToEven(fround(-low / scale)));
    next.scales[group] = scale;
    next.zeros[group] = zero;
    for (let i = 0; i < count; i++) {
      const quotient = fround(values[i]! / scale);
      const below = Math.floor(quotient);
      const rounded = stochastic ? below + (draws[drawn + i]! < fround(quotient - below) ? 1 : 0) : roundToEven(quotient);
      next.codes[from + i] = clamp(rounded + zero);
    }
  }
}
