import {
  add,
  gather,
  matMul,
  mul,
  reshape,
  tidy,
  transpose,
  unsortedSegmentSum,
  withGradient,
  type Parameter,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import { cachedNorm, columnNorms, ratio, rescale } from './direction.ts';
import { adapterParameter } from '@niwaki/peft';
import type { LoraAdapter, LoraSpec } from './lora-adapter.ts';
import { loraScale } from './lora-options.ts';
import { embeddingDelta } from './embedding-delta.ts';

export interface EmbeddingValues {
  /** [rank, vocabulary] */
  readonly a: Tensor2D;
  /** [width, rank] */
  readonly b: Tensor2D;
  /** [width], DoRA: starts as the norms of the columns of W + s·(B·A)ᵀ. */
  readonly magnitude?: Tensor1D | undefined;
}

/**
 * LoRA at an embedding: y = base(ids) + s·(Aᵀ[ids])·Bᵀ; with a magnitude, DoRA along the columns.
 * Bytes: 4·rank·(vocabulary + width), and as much again for A's gradient, which is dense. No dropout: ids have none.
 */
export function loraEmbedding(spec: LoraSpec, values: EmbeddingValues): LoraAdapter {
  const { path, point, name, rank, rslora } = spec;
  const parameter = (slot: string, value: Tensor, role: Parameter['role']): Parameter => adapterParameter(path, name, slot, value, role);
  const a = parameter('lora_embedding_A', values.a, 'adapterA');
  const b = parameter('lora_embedding_B', values.b, 'adapterB');
  const magnitude = values.magnitude && parameter('lora_magnitude_vector', values.magnitude, 'magnitude');
  const norm = values.magnitude && parameter('lora_norm', values.magnitude.clone(), 'statistic');
  const normOf = norm && cachedNorm(norm, { a, b }, (weight, factors, s) => columnNorms(weight, tableFactors(factors), s));
  let { alpha } = spec;
  let strength = 1;
  const scale = (): number => strength * loraScale(alpha, rank, rslora);

  return {
    kind: magnitude === undefined ? 'lora' : 'dora',
    point,
    parameters: {
      lora_embedding_A: a,
      lora_embedding_B: b,
      ...(magnitude && { lora_magnitude_vector: magnitude }),
      ...(norm && { norm }),
    },
    rank,
    rslora,
    get alpha() {
      return alpha;
    },
    set alpha(value: number) {
      alpha = value;
    },
    get strength() {
      return strength;
    },
    set strength(value: number) {
      strength = value;
    },
    get scale() {
      return scale();
    },
    apply: (ids, next, call, site) => {
      const z = lookupTail(next(ids), ids as Tensor1D, call.value(a) as Tensor2D, call.value(b) as Tensor2D, scale());
      return magnitude === undefined ? z : rescale(z, call.value(magnitude) as Tensor1D, normOf!(site.weight!, call, scale()));
    },
    ...(magnitude === undefined && { delta: () => embeddingDelta(a, b, scale()) }),
    merge: async (weight, _bias, base = weight) =>
      tidy(() => {
        const factors = tableFactors({ a: a.read() as Tensor2D, b: b.read() as Tensor2D });
        const sum = add(weight.dense(), mul(matMul(factors.b, factors.a), scale())) as Tensor2D;
        if (magnitude === undefined) return { matrix: sum };
        return { matrix: mul(sum, reshape(ratio(magnitude.read(), columnNorms(base, factors, scale())), [1, -1])) as Tensor2D };
      }),
    startsFrom: 'base',
    ...(magnitude && { gradient: 'surrogate' as const }),
  };
}

/** The embedding matrix changes by s·(B·A)ᵀ = s·Aᵀ·Bᵀ: the same product with the factors' places taken by each other's transpose. */
export const tableFactors = ({ a, b }: { readonly a: Tensor2D; readonly b: Tensor2D }): { a: Tensor2D; b: Tensor2D } => ({
  a: transpose(b),
  b: transpose(a),
});

/** base + scale·(Aᵀ[ids])·Bᵀ with a gradient for A that sums the rows of equal ids. Saves B, ids and the looked-up rows [n, rank]. */
function lookupTail(base: Tensor2D, ids: Tensor1D, a: Tensor2D, b: Tensor2D, scale: number): Tensor2D {
  const vocabulary = a.shape[1];
  return withGradient(
    [base, a, b],
    (save) => {
      const inner = transpose(gather(a, ids, 1));
      save([b, ids, inner]);
      return add(base, matMul(mul(inner, scale), b, false, true));
    },
    (dy, saved) => {
      const [sb, sids, inner] = saved as [Tensor2D, Tensor1D, Tensor2D];
      const dInner = mul(matMul(dy as Tensor2D, sb), scale) as Tensor2D;
      return [dy, transpose(unsortedSegmentSum(dInner, sids, vocabulary)), mul(matMul(dy as Tensor2D, inner, true, false), scale)];
    },
  ) as Tensor2D;
}
