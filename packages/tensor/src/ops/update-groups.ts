import { ConfigError, ShapeError } from '../errors.ts';
import { addressWords, type AddressWords, type Noise } from '../noise.ts';
import { runOp, type Op } from '../op.ts';
import { fillNoise } from '../philox.ts';
import { packCodes, unpackBytes } from './word-bytes.ts';
import {
  add,
  cast,
  clipByValue,
  concat,
  div,
  floor,
  less,
  max,
  maximum,
  min,
  minimum,
  mul,
  neg,
  pad,
  reshape,
  round,
  slice,
  sub,
  tensor1d,
  tidy,
  type Tensor,
  type Tensor1D,
} from '../tfjs.ts';

/** A flat matrix of n entries as bytes, scale · (code - zero), and a scale and a zero for every `groupSize` of them. */
export interface GroupCodes {
  /** int32 [ceil(n / 4)]: a byte an entry, lowest first. */
  readonly codes: Tensor;
  /** f32 [ceil(n / groupSize)]. */
  readonly scales: Tensor;
  /** int32 words: a byte a group. */
  readonly zeros: Tensor;
}

export interface UpdateGroupsAttributes extends AddressWords {
  readonly length: number;
  readonly groupSize: number;
  /** Multiplies the old values. */
  readonly shrink: number;
  /** Round by chance, with the `uniform` noise of the address at each entry's own index; else to the nearest, half to even. */
  readonly stochastic: boolean;
}

/** A group's range is at least this: what is smaller is 0. */
export const leastRange: number = Math.fround(1e-5);

/** Entries worked on at once by the reference: about ten f32 tensors of this size are alive together. */
const chunkEntries = 2 ** 16;

/**
 * Inputs the codes and `update`, f32 of `length` entries. Outputs [codes, scales, zeros] of shrink · old + update, each
 * group over the range that it has then. All arithmetic in f32, in this order.
 */
export const updateGroupsOp: Op<{ codes: Tensor; scales: Tensor; zeros: Tensor; update: Tensor }, UpdateGroupsAttributes> = {
  kernelName: 'NiwakiUpdateGroups',
  reference: ({ codes, scales, zeros, update }, attributes) => {
    const { length, groupSize } = attributes;
    // Whole words of codes and of zeros.
    const step = Math.max(1, Math.floor(chunkEntries / groupSize / 4)) * 4 * groupSize;
    const flat = reshape(update, [length]) as Tensor1D;
    const parts = Array.from({ length: Math.ceil(length / step) }, (_, i) => {
      const from = i * step;
      const count = Math.min(step, length - from);
      return tidy(() => {
        const groups = Math.ceil(count / groupSize);
        const own = {
          codes: slice(codes as Tensor1D, [from / 4], [Math.ceil(count / 4)]),
          scales: slice(scales as Tensor1D, [from / groupSize], [groups]),
          zeros: slice(zeros as Tensor1D, [from / groupSize / 4], [Math.ceil(groups / 4)]),
        };
        return updateChunk(own, slice(flat, [from], [count]), { from, count, groups }, attributes);
      });
    });
    return [concat(parts.map((part) => part.codes)), concat(parts.map((part) => part.scales)), concat(parts.map((part) => part.zeros))];
  },
};

interface Chunk {
  readonly from: number;
  readonly count: number;
  readonly groups: number;
}

function updateChunk(
  { codes, scales, zeros }: { readonly [K in keyof GroupCodes]: Tensor1D },
  update: Tensor1D,
  { from, count, groups }: Chunk,
  attributes: UpdateGroupsAttributes,
): { readonly [K in keyof GroupCodes]: Tensor1D } {
  const { groupSize, shrink, stochastic } = attributes;
  const rest = groups * groupSize - count;
  // Zeros beyond the end widen no range, since every range holds 0.
  const rows = (values: Tensor): Tensor => reshape(pad(values as Tensor1D, [[0, rest]]), [groups, groupSize]);
  const column = (values: Tensor): Tensor => reshape(values, [groups, 1]);
  const bytes = (words: Tensor1D, size: number): Tensor => slice(cast(unpackBytes(words), 'float32') as Tensor1D, [0], [size]);
  const old = mul(sub(rows(bytes(codes, count)), column(bytes(zeros, groups))), column(scales));
  const values = rows(add(mul(slice(reshape(old, [groups * groupSize]), [0], [count]), shrink), update));
  const low = minimum(min(values, 1, true), 0);
  const high = maximum(max(values, 1, true), 0);
  const scale = div(maximum(sub(high, low), leastRange), 255);
  const zero = clipByValue(round(div(neg(low), scale)), 0, 255);
  const quotient = div(values, scale);
  const rounded = stochastic ? byChance(quotient, rows(uniform(count, from, attributes))) : round(quotient);
  const made = reshape(clipByValue(add(rounded, zero), 0, 255), [groups * groupSize]) as Tensor1D;
  const words = (list: Tensor1D): Tensor1D => packCodes(pad(list, [[0, (4 - (list.size % 4)) % 4]]));
  return { codes: words(slice(made, [0], [count])), scales: reshape(scale, [groups]), zeros: words(reshape(zero, [groups])) };
}

/** The whole number below, or the next one as often as the fraction says: exact, and never another for a whole number. */
function byChance(quotient: Tensor, draws: Tensor): Tensor {
  const below = floor(quotient);
  return add(below, cast(less(draws, sub(quotient, below)), 'float32'));
}

function uniform(count: number, first: number, attributes: UpdateGroupsAttributes): Tensor1D {
  const values = new Float32Array(count);
  fillNoise(values, { ...attributes, length: count, distribution: 'uniform', keep: 1 }, { first });
  return tensor1d(values);
}

export interface UpdateGroupsOptions {
  /** A multiple of 4. */
  readonly groupSize: number;
  /** Multiplies the old values before the update is added; default 1. */
  readonly shrink?: number;
  /** Rounds by chance, E[new] = old + update, with draws of this address; absent: to the nearest. */
  readonly noise?: Noise;
}

/**
 * Adds to a matrix that is stored in 8 bits: decode, add, and encode again over each group's new range, a group at a time.
 * No f32 copy of the matrix is made. Draws follow each entry's index, so that the result does not depend on the tiling.
 * Memory: the new codes. On the device, without reading back; not differentiable.
 * @param update f32, as many entries as there are codes
 */
export function updateGroups(
  { codes, scales, zeros }: GroupCodes,
  update: Tensor,
  { groupSize, shrink = 1, noise }: UpdateGroupsOptions,
): GroupCodes {
  const groups = Math.ceil(update.size / groupSize);
  if (!(Number.isInteger(groupSize) && groupSize >= 4 && groupSize % 4 === 0)) {
    throw new ConfigError(`updateGroups: groupSize must be a multiple of 4, got ${groupSize}`, { groupSize });
  }
  if (codes.size !== Math.ceil(update.size / 4) || scales.size !== groups || zeros.size !== Math.ceil(groups / 4)) {
    throw new ShapeError(
      `updateGroups: [${update.shape}] in groups of ${groupSize} has ${Math.ceil(update.size / 4)} words of codes, ${groups} scales and ${Math.ceil(groups / 4)} words of zeros, got ${codes.size}, ${scales.size} and ${zeros.size}`,
      { groupSize, update: update.shape, codes: codes.size, scales: scales.size, zeros: zeros.size },
    );
  }
  const address = addressWords(noise ?? { seed: 0n, step: 0, id: 0, sample: 0 });
  const attributes = { ...address, length: update.size, groupSize, shrink: Math.fround(shrink), stochastic: noise !== undefined };
  const [newCodes, newScales, newZeros] = runOp(updateGroupsOp, { codes, scales, zeros, update }, attributes) as [Tensor, Tensor, Tensor];
  return { codes: newCodes, scales: newScales, zeros: newZeros };
}
