import { ShapeError } from '../errors.ts';
import { runOp, withGradient, type Op } from '../op.ts';
import { matMul, tensor2d, type Tensor, type Tensor2D } from '../tfjs.ts';
import type { PackedParts, PackedShape } from '../packed/layout.ts';
import { expectWidth, type GroupedOptions } from './grouped-matmul.ts';
import { decodeRows, hostParts, type PackedTensors } from './packed-matmul.ts';
import { expectRuns, overRuns, type Runs } from './runs.ts';
import { unwritten } from './unwritten.ts';

type StackInputs = { x: Tensor; runs: Tensor } & { [part: string]: Tensor };

/**
 * `groupedMatMulOp` over packed matrices: inputs x, runs, and the parts of all matrices, each part those of one matrix after
 * another (`count` sections of one size). Attributes: the packed shape of one matrix.
 */
export const packedGroupedMatMulOp: Op<StackInputs, PackedShape & { transposed: boolean }> = {
  kernelName: 'NiwakiPackedGroupedMatMul',
  reference: ({ x, runs, ...parts }, { transposed, ...shape }) => {
    const host = hostParts(shape, parts);
    const everyRow = Int32Array.from({ length: shape.out }, (_, row) => row);
    const matrix = (e: number): Tensor2D => tensor2d(decodeRows(shape, sectionOf(host, e, runs.size - 1), everyRow), [shape.out, shape.in]);
    return [overRuns(x, runs, transposed ? shape.in : shape.out, (rows, e) => matMul(rows, matrix(e), false, !transposed))];
  },
};

/** The parts of matrix e of `count`. */
function sectionOf(parts: PackedParts, e: number, count: number): PackedParts {
  const sections = Object.entries(parts as Record<string, Uint8Array | Float32Array>).map(([name, values]) => {
    const size = values.length / count;
    return [name, values.subarray(e * size, (e + 1) * size)] as const;
  });
  return Object.fromEntries(sections);
}

/**
 * x·Wᵀ with a packed matrix of its own for each run of rows (`groupedMatMul`). Differentiable in x; backward holds the parts
 * and the runs, and neither x nor a float copy of a matrix.
 * @param x [rows, in] f32
 * @param parts those of one matrix after another, in sections of one size
 * @param shape of one matrix
 * @param runs int32 [count + 1]
 */
export function packedGroupedMatMul(
  x: Tensor2D,
  parts: PackedTensors,
  shape: PackedShape,
  runs: Runs,
  { unread = false }: GroupedOptions = {},
): Tensor2D {
  const names = Object.keys(parts);
  const tensors = Object.values(parts) as Tensor[];
  const count = runs.size - 1;
  expectRuns(runs, count);
  expectWidth(x, [shape.out, shape.in]);
  for (const [i, { size }] of tensors.entries()) {
    if (size % count === 0) continue;
    throw new ShapeError(`a stack of ${count} matrices has parts of ${count} equal sections, '${names[i]}' holds ${size} values`, {
      part: names[i],
      size,
      count,
    });
  }
  return withGradient(
    [x],
    (save) => {
      save([...tensors, runs]);
      if (unread) return unwritten(x.shape[0], shape.out);
      return runOp(packedGroupedMatMulOp, { ...(parts as { [name: string]: Tensor }), x, runs }, { ...shape, transposed: false })[0]!;
    },
    (dy, saved) => {
      const again = Object.fromEntries(names.map((name, i) => [name, saved[i]!]));
      return runOp(packedGroupedMatMulOp, { ...again, x: dy, runs: saved[names.length]! }, { ...shape, transposed: true });
    },
  ) as Tensor2D;
}
