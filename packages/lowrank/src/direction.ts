import {
  add,
  concat,
  div,
  matMul,
  maximum,
  mul,
  slice,
  sqrt,
  square,
  sum,
  tidy,
  withGradient,
  zeros,
  type Parameter,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import type { Call, Weight } from '@niwaki/weights';

/** Entries of W that are dense at once: 4 MiB of f32. */
const tileEntries = 2 ** 20;

export interface Factors {
  /** [rank, in] */
  readonly a: Tensor2D;
  /** [out, rank] */
  readonly b: Tensor2D;
}

/** Tiles of V = W + scale·B·A, so that no whole float copy of W exists. */
function* tiles(weight: Weight, { a, b }: Factors, scale: number): Generator<Tensor2D> {
  const [out, width] = weight.shape;
  const rows = Math.max(1, Math.floor(tileEntries / width));
  for (let from = 0; from < out; from += rows) {
    const to = Math.min(out, from + rows);
    yield tidy(() => add(weight.dense([from, to]), mul(matMul(slice(b, [from, 0], [to - from, -1]), a), scale))) as Tensor2D;
  }
}

/** L2 norm of each row of W + scale·B·A, [out]. */
export function rowNorms(weight: Weight, factors: Factors, scale: number): Tensor1D {
  return tidy(() => {
    const parts: Tensor1D[] = [];
    for (const tile of tiles(weight, factors, scale)) parts.push(consumed(tile, (v) => sqrt(sum(square(v), 1))) as Tensor1D);
    return parts.length === 1 ? parts[0]! : (concat(parts) as Tensor1D);
  });
}

/** L2 norm of each column of W + scale·B·A, [in]: an embedding's directions run over the vocabulary. */
export function columnNorms(weight: Weight, factors: Factors, scale: number): Tensor1D {
  return tidy(() => {
    let total: Tensor = zeros([weight.shape[1]]);
    for (const tile of tiles(weight, factors, scale))
      total = add(
        total,
        consumed(tile, (v) => sum(square(v), 0)),
      );
    return sqrt(total) as Tensor1D;
  });
}

function consumed(tile: Tensor2D, reduce: (tile: Tensor2D) => Tensor): Tensor {
  const result = tidy(() => reduce(tile));
  tile.dispose();
  return result;
}

/**
 * DoRA's m/‖V‖ applied to V's output: z ⊙ (m/n) over the columns of z. The norm carries no gradient (Liu et al. 2024,
 * §4.3), so dz = dy ⊙ m/n and dm = Σ dy ⊙ z / n. Saves z, m and n.
 * @param z [rows, width], m and n [width]
 */
export function rescale(z: Tensor2D, m: Tensor1D, n: Tensor1D): Tensor2D {
  const valueOf = (of: Tensor, by: Tensor, norm: Tensor): Tensor => mul(of, ratio(by, norm));
  return withGradient(
    [z, m],
    (save) => {
      save([z, m, n]);
      return valueOf(z, m, n);
    },
    (dy, saved) => {
      const [sz, sm, sn] = saved as [Tensor2D, Tensor1D, Tensor1D];
      return [mul(dy, ratio(sm, sn)), div(sum(mul(dy, sz), 0), floored(sn))];
    },
    { remake: ([sz, sm, sn]) => valueOf(sz!, sm!, sn!) },
  ) as Tensor2D;
}

// A row of zeros has norm 0 and magnitude 0; it must stay a row of zeros.
const floored = (n: Tensor): Tensor => maximum(n, 1e-12);
export const ratio = (m: Tensor, n: Tensor): Tensor => div(m, floored(n));

/** The norm of this call's values, with no gradient behind it. */
export type Norm = (weight: Weight, call: Call, scale: number) => Tensor1D;

/**
 * Keeps the norm in a statistic parameter while nothing it depends on was written: it costs a product of the size of W,
 * and evaluation and the second run of a block need the same one again.
 */
export function cachedNorm(
  stored: Parameter,
  { a, b }: { readonly a: Parameter; readonly b: Parameter },
  compute: (weight: Weight, factors: Factors, scale: number) => Tensor1D,
): Norm {
  let key: string | undefined;
  let of: Weight | undefined;
  return (weight, call, scale) => {
    const now = [scale, ...[a, b, ...Object.values(weight.parts)].map((part) => part.version)].join();
    const plain = call.view.of(a).kind === 'plain' && call.view.of(b).kind === 'plain';
    if (plain && key === now && of === weight) return stored.read() as Tensor1D;
    const factors = { a: call.value(a) as Tensor2D, b: call.value(b) as Tensor2D };
    // Inside a function of no inputs nothing is taped: the tiles are gone when it returns.
    const norm = withGradient(
      [],
      () => compute(weight, factors, scale),
      () => [],
    ) as Tensor1D;
    if (plain) {
      stored.write(norm.clone());
      [key, of] = [now, weight];
    }
    return norm;
  };
}
