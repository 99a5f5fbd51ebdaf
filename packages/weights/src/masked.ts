import {
  denseParameter,
  gather,
  matMul,
  mul,
  packBytes,
  range,
  reshape,
  slice,
  tidy,
  unpackFields,
  withGradient,
  type Parameter,
  type Range,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import type { Call } from './call.ts';
import { denseWeight } from './dense.ts';
import { expectMask } from './entry-mask.ts';
import { asProduct, frozenMatrix } from './frozen.ts';
import { observe } from './observe.ts';
import { maskCodes } from './trained-affine.ts';
import { isHalf } from './stored-values.ts';
import type { Weight } from './weight.ts';

/**
 * A weight with entries that are 0 and stay 0: through training (the parameter's constraint, after every update), under
 * perturbed reads (multiplied again), and through `encode`, which drops what a new matrix holds at pruned entries. One bit
 * an entry more than the base stores.
 *
 * Over dense and half-precision bases the zeros are stored, and a product costs what the base's costs. Training it, the
 * gradient of pruned entries is 0: one f32 copy of the matrix lives from forward to backward. Over any other format, where
 * a stored 0 may not decode to 0, every product decodes the whole matrix first, 8 bytes an entry while it lasts.
 * @param path module path
 * @param base taken over: dispose the result alone. One that is masked already keeps what both masks keep
 * @param mask one bit an entry (`packMask`), 1 where kept
 * @throws ShapeError for a mask of another size
 */
export function masked(path: string, base: Weight, mask: Uint8Array): Weight {
  const { shape } = base;
  const [out, width] = shape;
  expectMask(path, shape, mask);
  const before = under.get(base);
  if (before !== undefined) {
    // What an earlier mask took away is gone, wherever the new one is.
    base.parts['mask']!.dispose();
    return masked(
      path,
      before.inner,
      mask.map((byte, i) => byte & before.mask[i]!),
    );
  }
  const bits = denseParameter(`${path}.mask`, packBytes(mask), {
    role: 'index',
    shape,
    file: { dtype: 'U8', shape: [mask.length], bytes: mask.length },
  });
  // Read when used: as f32 it would be as large as the matrix.
  const entries = (): Tensor2D => reshape(unpackFields(bits.read(), { bits: 1, count: out * width }), [out, width]);
  const inner = base.matrix === undefined ? base : (maskCodes(base, bits) ?? constrained(base.matrix, bits, entries));
  const { matrix } = inner;
  const stored = matrix !== undefined || isHalf(inner);
  const parts = Object.values(inner.parts);
  const asStored = (call: Call): boolean => stored && parts.every((part) => !call.tracks(part) && call.view.of(part).kind === 'plain');
  const rowsUnder = (call: Call): Tensor2D => {
    if (matrix !== undefined) return call.value(matrix) as Tensor2D;
    return inner.lookup === undefined ? inner.dense() : inner.lookup(range(0, out, 1, 'int32') as Tensor1D, call);
  };

  const weight: Weight = {
    kind: 'masked',
    options: { base: { kind: inner.kind, options: inner.options } },
    shape,
    parts: { ...inner.parts, mask: bits },
    ...(matrix && { matrix }),
    apply: asProduct(
      (x, call) => {
        if (asStored(call)) return observe(weight, x, inner.apply(x, call), call);
        if (parts.some((part) => call.tracks(part))) {
          return observe(weight, x, matMul(x, maskedValues(rowsUnder(call), entries), false, true), call);
        }
        return observe(
          weight,
          x,
          decodedMatMul(x, () => mul(rowsUnder(call), entries())),
          call,
        );
      },
      (_, call) => (asStored(call) ? frozenMatrix(inner, call) : undefined),
    ),
    dense: (rows) =>
      tidy(() => {
        const values = inner.dense(rows);
        return stored ? values : mul(values, someRows(entries(), rows));
      }),
    ...(inner.lookup && {
      lookup: (ids: Tensor1D, call: Call) => {
        const values = inner.lookup!(ids, call);
        return asStored(call) ? values : tidy(() => mul(values, gather(entries(), ids)) as Tensor2D);
      },
    }),
    ...(inner.encode && {
      encode: async (dense, target, noise) => {
        const kept = tidy(() => mul(dense, entries()) as Tensor2D);
        try {
          return masked(target, await inner.encode!(kept, target, noise), mask);
        } finally {
          kept.dispose();
        }
      },
    }),
  };
  under.set(weight, { inner, mask });
  return weight;
}

/** Masked weights taken apart: a second mask over one is a single mask. */
const under = new WeakMap<Weight, { readonly inner: Weight; readonly mask: Uint8Array }>();

/** The same matrix with zeros where the mask has them, now and after every update. The old parameter is disposed. */
function constrained(old: Parameter, bits: Parameter, entries: () => Tensor2D): Weight {
  const value = tidy(() => mul(old.read(), entries()));
  const { path, role, trainable, constraint } = old;
  old.dispose();
  return denseWeight(denseParameter(path, value, { role, trainable, constraint: { ...constraint, mask: { bits: bits.read() } } }));
}

/** w ⊙ mask; backward unpacks the mask again. */
const maskedValues = (w: Tensor2D, entries: () => Tensor2D): Tensor2D =>
  withGradient(
    [w],
    () => tidy(() => mul(w, entries())),
    (dy) => [tidy(() => mul(dy, entries()))],
  ) as Tensor2D;

/** x·Wᵀ over a matrix that is decoded in each direction and kept in none. */
export const decodedMatMul = (x: Tensor2D, decode: () => Tensor): Tensor2D =>
  withGradient(
    [x],
    () => tidy(() => matMul(x, decode() as Tensor2D, false, true)),
    (dy) => [tidy(() => matMul(dy as Tensor2D, decode() as Tensor2D))],
  ) as Tensor2D;

const someRows = (values: Tensor2D, rows: Range | undefined): Tensor2D =>
  rows === undefined ? values : slice(values, [rows[0], 0], [rows[1] - rows[0], values.shape[1]]);
