/**
 * Addressed noise: a counter-based generator (Philox4x32-10) keyed by (run seed, step, name, index). The same address
 * gives the same numbers on every device, in any order, so nothing ever stores noise and a step can be computed again.
 */
import { NumericError } from './errors.ts';
import { runOp, type Op } from './op.ts';
import { reshape, tensor1d, tidy, type Tensor } from './tfjs.ts';
import { fillNoise } from './philox.ts';

export type Distribution = 'gaussian' | 'rademacher' | 'binomial64' | 'irwinhall12' | 'uniform' | 'mask';

/** Where noise is drawn: one run, one step, one name, one sample (the q-th direction or micro-batch of the step). */
export interface Noise {
  readonly seed: bigint;
  readonly step: number;
  /** 32-bit id of the name: `path` for perturbations, `path#purpose` for every other use. */
  readonly id: number;
  readonly sample: number;
}

export interface Draw {
  at(name: string, sample?: number): Noise;
}

/** An address as numbers that a kernel takes. */
export interface AddressWords {
  readonly seedLow: number;
  readonly seedHigh: number;
  readonly step: number;
  readonly id: number;
  readonly sample: number;
}

export interface NoiseAttributes extends AddressWords {
  readonly distribution: Distribution;
  readonly length: number;
  /** Keep-probability of `mask`. */
  readonly keep: number;
}

/** No inputs. Output [length] f32: element e of the address; `mask` gives 1 (kept) or 0. */
export const noiseOp: Op<Record<string, never>, NoiseAttributes> = {
  kernelName: 'NiwakiNoise',
  reference: (_, attributes) => {
    const values = new Float32Array(attributes.length);
    fillNoise(values, attributes);
    return [tensor1d(values)];
  },
};

/**
 * Noise of a shape, indexed row-major by its logical position.
 * @param options `keep` is the probability that an entry of a `mask` is 1
 */
export function noise(shape: readonly number[], address: Noise, distribution: Distribution, options: { keep?: number } = {}): Tensor {
  const attributes = noiseAttributes(shape, address, distribution, options);
  return tidy(() => reshape(runOp(noiseOp, {}, attributes)[0]!, [...shape]));
}

/** What `noise` draws, for an op that draws it itself. */
export function noiseAttributes(
  shape: readonly number[],
  address: Noise,
  distribution: Distribution,
  { keep = 1 }: { keep?: number } = {},
): NoiseAttributes {
  if (!(keep >= 0 && keep <= 1)) throw new NumericError(`noise: keep must be a probability in [0, 1], got ${keep}`, { keep });
  return { ...addressWords(address), distribution, length: shape.reduce((product, side) => product * side, 1), keep };
}

/** @throws NumericError for a sample that does not fit the address */
export function addressWords({ seed, step, id, sample }: Noise): AddressWords {
  if (!(sample >= 0 && sample < 2 ** 24)) throw new NumericError(`noise: sample must be in [0, 2^24), got ${sample}`, { sample });
  return { seedLow: Number(seed & 0xffffffffn), seedHigh: Number((seed >> 32n) & 0xffffffffn), step, id, sample };
}

/** FNV-1a, 32 bits, of a name's UTF-8 bytes. */
export function nameId(name: string): number {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(name)) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 0;
}

/**
 * The draws of one step. Names registered together get distinct ids (a 32-bit hash does collide in large models): in
 * sorted order each name steps to the next free id.
 */
export function createDraw(seed: bigint | number, step: number, ids?: ReadonlyMap<string, number>): Draw {
  const wide = BigInt.asUintN(64, BigInt(seed));
  return { at: (name, sample = 0) => ({ seed: wide, step: step >>> 0, id: ids?.get(name) ?? nameId(name), sample }) };
}

/** Ids for a fixed set of names, without clashes; only the exceptions to `nameId` need to be kept. */
export function assignIds(names: Iterable<string>): Map<string, number> {
  const ids = new Map<string, number>();
  const taken = new Set<number>();
  for (const name of [...names].sort()) {
    let id = nameId(name);
    while (taken.has(id)) id = (id + 1) >>> 0;
    taken.add(id);
    ids.set(name, id);
  }
  return ids;
}
