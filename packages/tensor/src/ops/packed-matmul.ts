import { matMul, tensor2d, type Tensor, type Tensor1D, type Tensor2D } from '../tfjs.ts';
import { runOp, withGradient, type Op } from '../op.ts';
import { decodePacked, type PackedParts, type PackedShape } from '../packed/layout.ts';
import { bytesOf } from '../packed/words.ts';
import { unwritten } from './unwritten.ts';

/** The stored parts as tensors: bytes as int32 words, the rest f32; names as in `PackedParts`. */
export type PackedTensors = { readonly [K in keyof PackedParts]: Tensor };

/**
 * Inputs x and the parts. Output [x·Wᵀ] for x [rows, in], or with `transposed` [x·W] for x [rows, out] (the gradient).
 * A kernel decodes panels as it multiplies; no float copy of W exists.
 */
export const packedMatMulOp: Op<PackedInputs<'x'>, PackedShape & { transposed: boolean }> = {
  kernelName: 'NiwakiPackedMatMul',
  reference: ({ x, ...parts }, { transposed, ...shape }) => {
    const dense = decodeRows(shape, hostParts(shape, parts), everyRow(shape));
    return [matMul(x, tensor2d(dense, [shape.out, shape.in]), false, !transposed)];
  },
};

/** Inputs ids [n] int32 and the parts. Output [rows [n, in] f32]. */
export const packedRowsOp: Op<PackedInputs<'ids'>, PackedShape> = {
  kernelName: 'NiwakiPackedRows',
  reference: ({ ids, ...parts }, shape) => {
    const rows = decodeRows(shape, hostParts(shape, parts), ids.dataSync() as Int32Array);
    return [tensor2d(rows, [ids.size, shape.in])];
  },
};

export type PackedInputs<X extends string> = { [name in X]: Tensor } & { [name: string]: Tensor };

/** The parts' values on the host, as views where the device allows it. */
export function hostParts(shape: PackedShape, parts: { [name: string]: Tensor }): PackedParts {
  const host: Record<string, Uint8Array | Float32Array> = {};
  for (const [name, part] of Object.entries(parts)) {
    const values = part.dataSync() as Float32Array | Int32Array;
    host[name] = part.dtype === 'int32' ? bytesOf(values) : (values as Float32Array);
  }
  return host as PackedParts;
}

/** Decoded rows of a packed matrix, in the order of `ids`. */
export function decodeRows(shape: PackedShape, parts: PackedParts, ids: ArrayLike<number>): Float32Array {
  const out = new Float32Array(ids.length * shape.in);
  for (let i = 0; i < ids.length; i++) decodePacked(shape, parts, ids[i]! * shape.in, shape.in, out, i * shape.in);
  return out;
}

const everyRow = (shape: PackedShape): Int32Array => Int32Array.from({ length: shape.out }, (_, row) => row);

/**
 * x·Wᵀ over a packed W (out, in). Differentiable in x; backward holds the parts, and neither x nor a float copy of W.
 * @param x [rows, in] f32
 * @param options `unread`: only the gradient is asked for, and the result is `unwritten`
 */
export const packedMatMul = (
  x: Tensor2D,
  parts: PackedTensors,
  shape: PackedShape,
  { unread = false }: { readonly unread?: boolean | undefined } = {},
): Tensor2D =>
  multiplyPacked(x, parts, shape, (inputs) =>
    unread ? unwritten(x.shape[0], shape.out) : runOp(packedMatMulOp, inputs, { ...shape, transposed: false })[0]!,
  );

/** What `forward` makes of x [rows, in] and the parts, with the gradient of x·Wᵀ. */
export function multiplyPacked(
  x: Tensor2D,
  parts: PackedTensors,
  shape: PackedShape,
  forward: (inputs: PackedInputs<'x'>) => Tensor,
): Tensor2D {
  const names = Object.keys(parts);
  const tensors = Object.values(parts) as Tensor[];
  return withGradient(
    [x],
    (save) => {
      // No copies: but a part read through a view (perturbed scales) may be a tensor of this pass alone.
      save(tensors);
      return forward({ ...(parts as { [name: string]: Tensor }), x });
    },
    (dy, saved) => {
      const again = Object.fromEntries(names.map((name, i) => [name, saved[i]!]));
      return runOp(packedMatMulOp, { ...again, x: dy }, { ...shape, transposed: true });
    },
  ) as Tensor2D;
}

/** Rows of a packed matrix as f32: an embedding's lookup, or a dense tile. Not differentiable. @param ids [n] int32 */
export function packedRows(ids: Tensor1D, parts: PackedTensors, shape: PackedShape): Tensor2D {
  return runOp(packedRowsOp, { ...(parts as { [name: string]: Tensor }), ids }, shape)[0] as Tensor2D;
}
