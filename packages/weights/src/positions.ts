import {
  matMul,
  ShapeError,
  slice,
  tidy,
  withGradient,
  range,
  type Parameter,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import type { Call } from './call.ts';
import { decodedMatMul } from './masked.ts';
import { observe } from './observe.ts';
import type { Weight } from './weight.ts';

/** Which entries of a matrix a sparse weight stores, and how values get there and back. New tensors, made on the device. */
export interface Positions {
  readonly shape: readonly [out: number, in_: number];
  /** Shape of the matrix of values. */
  readonly valuesShape: readonly [rows: number, width: number];
  /** Values at their places, zeros elsewhere: f32 [out, in]. */
  expand(values: Tensor2D): Tensor2D;
  /** What a matrix holds at those places. */
  pick(dense: Tensor2D): Tensor2D;
}

/**
 * What N:M and CSR weights do alike. Each product builds the whole matrix from the stored values first, 4 bytes an entry
 * and up to 8 more while it is built, and keeps it in no direction; training the values, it lives until the backward pass
 * and so does its gradient.
 * @param again the same format around other values
 */
export function atPositions(
  path: string,
  positions: Positions,
  {
    kind,
    options,
    values,
    index,
    again,
  }: {
    readonly kind: string;
    readonly options: Weight['options'];
    readonly values: Weight;
    readonly index: Readonly<Record<string, Parameter>>;
    again(values: Weight, path: string): Weight;
  },
): Weight {
  const { shape, valuesShape } = positions;
  if (values.shape.join() !== valuesShape.join()) {
    throw new ShapeError(`'${path}': the values of these positions are [${valuesShape}], got [${values.shape}]`, {
      path,
      expected: valuesShape,
      given: values.shape,
    });
  }
  const read = (call: Call): Tensor2D => {
    if (values.matrix !== undefined) return call.value(values.matrix) as Tensor2D;
    if (values.lookup === undefined) return values.dense();
    return values.lookup(range(0, valuesShape[0], 1, 'int32') as Tensor1D, call);
  };
  const parts = Object.values(values.parts);
  const weight: Weight = {
    kind,
    options,
    shape,
    parts: { ...values.parts, ...index },
    apply: (x, call) => {
      const tracked = parts.some((part) => call.tracks(part));
      const y: Tensor2D = tracked
        ? matMul(x, expanded(read(call), positions), false, true)
        : decodedMatMul(x, () => positions.expand(read(call)));
      return observe(weight, x, y, call);
    },
    dense: (rows) =>
      tidy(() => {
        const whole = positions.expand(values.dense());
        return rows === undefined ? whole : slice(whole, [rows[0], 0], [rows[1] - rows[0], shape[1]]);
      }),
    ...(values.encode && {
      encode: async (dense, target, noise) => {
        const picked = positions.pick(dense);
        try {
          return again(await values.encode!(picked, `${target}.values`, noise), target);
        } finally {
          picked.dispose();
        }
      },
    }),
  };
  return weight;
}

/** The matrix, and for the values alone a gradient. */
const expanded = (values: Tensor2D, positions: Positions): Tensor2D =>
  withGradient(
    [values],
    () => positions.expand(values),
    (dy) => [positions.pick(dy as Tensor2D) as Tensor],
  ) as Tensor2D;
