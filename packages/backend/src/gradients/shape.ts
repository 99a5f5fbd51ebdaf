import * as tf from '@tensorflow/tfjs-core';
import type { GradConfig, Tensor } from '@tensorflow/tfjs-core';
import { ConfigError } from '@niwaki/tensor';

/** Gradients of ops that only move numbers. */
export const shapeGradients: readonly GradConfig[] = [
  ...[tf.Reshape, tf.ExpandDims].map((kernelName) => ({
    kernelName,
    inputsToSave: [kernelName === tf.ExpandDims ? 'input' : 'x'],
    gradFunc: (dy: Tensor | Tensor[], [x]: Tensor[]) => ({
      [kernelName === tf.ExpandDims ? 'input' : 'x']: () => tf.reshape(dy as Tensor, x!.shape),
    }),
  })),
  {
    kernelName: tf.Transpose,
    gradFunc: (dy, _, attrs) => {
      const { perm } = attrs as { perm: number[] };
      const inverse = perm.map((__, axis) => perm.indexOf(axis));
      return { x: () => tf.transpose(dy as Tensor, inverse) };
    },
  },
  {
    kernelName: tf.Concat,
    saveAllInputs: true,
    gradFunc: (dy, inputs, attrs) => {
      const axis = tf.util.parseAxisParam((attrs as { axis: number }).axis, inputs[0]!.shape)[0]!;
      const parts = tf.split(
        dy as Tensor,
        inputs.map((x) => x.shape[axis]!),
        axis,
      );
      return parts.map((part) => () => part) as unknown as Record<string, () => Tensor>;
    },
  },
  { kernelName: tf.SplitV, gradFunc: (dy, _, attrs) => ({ x: () => tf.concat(dy as Tensor[], (attrs as { axis: number }).axis) }) },
  {
    kernelName: tf.Pack,
    saveAllInputs: true,
    gradFunc: (dy, _, attrs) => {
      const parts = tf.unstack(dy as Tensor, (attrs as { axis: number }).axis);
      return parts.map((part) => () => part) as unknown as Record<string, () => Tensor>;
    },
  },
  { kernelName: tf.Unpack, gradFunc: (dy, _, attrs) => ({ value: () => tf.stack(dy as Tensor[], (attrs as { axis: number }).axis) }) },
  {
    kernelName: tf.AddN,
    saveAllInputs: true,
    gradFunc: (dy, inputs) => inputs.map(() => () => tf.clone(dy as Tensor)) as unknown as Record<string, () => Tensor>,
  },
  {
    kernelName: tf.PadV2,
    inputsToSave: ['x'],
    gradFunc: (dy, [x], attrs) => {
      const { paddings } = attrs as unknown as { paddings: [number, number][] };
      const begin = paddings.map(([before]) => before);
      return { x: () => tf.slice(dy as Tensor, begin, x!.shape) };
    },
  },
  {
    kernelName: tf.Slice,
    inputsToSave: ['x'],
    gradFunc: (dy, [x], attrs) => {
      const { begin, size } = attrs as { begin: number | number[]; size: number | number[] };
      const [from, sides] = tf.slice_util.parseSliceParams(x!, begin, size);
      const paddings = from!.map((start, axis) => [start, x!.shape[axis]! - start - sides![axis]!] as [number, number]);
      return { x: () => tf.pad(dy as Tensor, paddings) };
    },
  },
  {
    kernelName: tf.Tile,
    inputsToSave: ['x'],
    gradFunc: (dy, [x], attrs) => ({ x: () => untile(dy as Tensor, x!.shape, (attrs as { reps: number[] }).reps) }),
  },
  { kernelName: tf.Reverse, gradFunc: (dy, _, attrs) => ({ x: () => tf.reverse(dy as Tensor, (attrs as { dims: number[] }).dims) }) },
  {
    kernelName: tf.GatherV2,
    inputsToSave: ['x', 'indices'],
    gradFunc: (dy, [x, indices], attrs) => {
      const { axis, batchDims } = attrs as { axis: number; batchDims: number };
      if (batchDims)
        throw new ConfigError('gather: no gradient with batchDims', { batchDims, help: 'Flatten the batch into the indices.' });
      return {
        x: () => ungather(dy as Tensor, x!.shape, indices!, tf.util.parseAxisParam(axis, x!.shape)[0]!),
        indices: () => tf.zeros(indices!.shape),
      };
    },
  },
  {
    kernelName: tf.UnsortedSegmentSum,
    inputsToSave: ['segmentIds'],
    gradFunc: (dy, [ids]) => ({
      x: () => {
        const rows = tf.gather(dy as Tensor, tf.cast(tf.maximum(ids!, 0), 'int32'));
        const counted = tf.cast(tf.greaterEqual(ids!, 0), 'float32');
        return tf.mul(rows, tf.reshape(counted, [...ids!.shape, ...Array<number>(rows.rank - ids!.rank).fill(1)]));
      },
      segmentIds: () => tf.zeros(ids!.shape),
    }),
  },
  { kernelName: tf.OneHot, inputsToSave: ['indices'], gradFunc: (_, [indices]) => ({ indices: () => tf.zeros(indices!.shape) }) },
];

/** Sums the repetitions, one axis at a time, so that no rank is too large for any device. */
function untile(dy: Tensor, shape: readonly number[], reps: readonly number[]): Tensor {
  const sides = shape.map((side, axis) => side * reps[axis]!);
  let out = dy;
  reps.forEach((times, axis) => {
    if (times === 1) return;
    const before = sides.slice(0, axis).reduce((product, side) => product * side, 1);
    out = tf.sum(tf.reshape(out, [before, times, -1]), 1);
    sides[axis] = shape[axis]!;
  });
  return tf.reshape(out, [...shape]);
}

/** Adds each gathered slice back to where it came from: rows of equal index are summed. */
function ungather(dy: Tensor, shape: readonly number[], indices: Tensor, axis: number): Tensor {
  const before = shape.slice(0, axis).reduce((product, side) => product * side, 1);
  const after = shape.slice(axis + 1).reduce((product, side) => product * side, 1);
  const ids = tf.reshape(tf.cast(indices, 'int32'), [indices.size]) as tf.Tensor1D;
  const rows = tf.transpose(tf.reshape(dy, [before, indices.size, after]), [1, 0, 2]);
  const sums = tf.unsortedSegmentSum(rows, ids, shape[axis]!);
  return tf.reshape(tf.transpose(sums, [1, 0, 2]), [...shape]);
}
