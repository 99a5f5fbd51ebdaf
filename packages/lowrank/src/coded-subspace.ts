import {
  checkCount,
  checkOneOf,
  dispose,
  mul,
  packBits,
  packBytes,
  packedBytes,
  pad,
  reshape,
  slice,
  sub,
  tensor1d,
  tidy,
  unpackFields,
  zeros,
  type AffineBits,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import { affineBits, affineCode, affineStep } from '@niwaki/weights';
import type { State } from '@niwaki/optim';
import type { Subspace } from './subspace.ts';

export interface BasisCode {
  /** Bits of an entry of a basis: 2, 3, 4 or 8. */
  readonly bits: AffineBits;
  /** Entries, in the flat order of the basis, that share a scale and a zero; at least 32. The last ones may be fewer. */
  readonly groupSize: number;
}

export function checkBasisCode(name: string, { bits, groupSize }: BasisCode): void {
  checkOneOf(name, 'basisBits', bits, affineBits);
  checkCount(name, 'basisGroupSize', groupSize, 32);
}

/**
 * The same subspace with its basis in integers of a few bits (Q-GaLore, section 3.2): a basis of n entries takes n · bits / 8
 * bytes, and 8 for every group. What is stored is what projects, there and back, so that the columns are orthonormal
 * only nearly. `at.first` is the first vector before it was rounded, f32: what choices are compared by.
 */
export function codedSubspace(inner: Subspace, code: BasisCode): Subspace {
  const shapes = shapesOf(inner);
  const decoded = (at: State): State => Object.fromEntries(shapes.map(([name, shape]) => [name, decode(at, name, shape, code)]));
  return {
    shape: inner.shape,
    initial: () => ({
      ...Object.assign({}, ...shapes.map(([name, shape]) => empty(name, shape, code))),
      first: zeros([shapes[0]![1][0]]),
    }),
    choose: async (gradient, address) => {
      const bases = await inner.choose(gradient, address);
      try {
        const found: Record<string, Tensor> = {};
        for (const [name, shape] of shapes) {
          const values = (await bases[name]!.data()) as Float32Array;
          Object.assign(found, encode(name, values, code));
          found['first'] ??= tensor1d(values.filter((_, i) => i % shape[1] === 0));
        }
        return found;
      } finally {
        dispose(bases);
      }
    },
    down: (gradient, at) => tidy(() => inner.down(gradient, decoded(at))),
    up: (small, at) => tidy(() => inner.up(small, decoded(at))),
  };
}

/** Of each basis: the side it spans, and its rank. */
function shapesOf(subspace: Subspace): readonly (readonly [name: string, shape: readonly [number, number]])[] {
  const bases = subspace.initial();
  const shapes = Object.entries(bases).map(([name, { shape }]) => [name, shape as [number, number]] as const);
  dispose(bases);
  return shapes;
}

function empty(name: string, [side, rank]: readonly [number, number], { bits, groupSize }: BasisCode): Record<string, Tensor> {
  const groups = Math.ceil((side * rank) / groupSize);
  return {
    [`${name}.codes`]: zeros([Math.ceil(packedBytes(side * rank, bits) / 4)], 'int32'),
    [`${name}.scales`]: zeros([groups]),
    [`${name}.zeros`]: zeros([groups]),
  };
}

function encode(name: string, values: Float32Array, { bits, groupSize }: BasisCode): Record<string, Tensor> {
  const groups = Math.ceil(values.length / groupSize);
  const codes = new Uint8Array(values.length);
  const scales = new Float32Array(groups);
  const zeroCodes = new Float32Array(groups);
  for (let group = 0; group < groups; group++) {
    const [from, to] = [group * groupSize, Math.min(values.length, (group + 1) * groupSize)];
    const step = affineStep(values, [from, to], { bits, grid: 'asymmetric' });
    scales[group] = step.scale;
    zeroCodes[group] = step.zero;
    for (let i = from; i < to; i++) codes[i] = affineCode(values[i]!, step, bits);
  }
  return {
    [`${name}.codes`]: packBytes(packBits(codes, { bits })),
    [`${name}.scales`]: tensor1d(scales),
    [`${name}.zeros`]: tensor1d(zeroCodes),
  };
}

function decode(at: State, name: string, [side, rank]: readonly [number, number], { bits, groupSize }: BasisCode): Tensor2D {
  return tidy(() => {
    const part = (of: string): Tensor => at[`${name}.${of}`] as Tensor;
    const count = side * rank;
    const groups = part('scales').size;
    const fields = unpackFields(part('codes'), { bits, count });
    const rows = reshape(pad(fields, [[0, groups * groupSize - count]]), [groups, groupSize]);
    const values = mul(sub(rows, reshape(part('zeros'), [groups, 1])), reshape(part('scales'), [groups, 1]));
    return reshape(slice(reshape(values, [groups * groupSize]) as Tensor1D, [0], [count]), [side, rank]) as Tensor2D;
  });
}
