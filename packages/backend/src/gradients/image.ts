import * as tf from '@tensorflow/tfjs-core';
import type { GradConfig, NamedTensorMap, Tensor } from '@tensorflow/tfjs-core';
import { wasmName } from '../started-device.ts';
import { spreadOf } from './dilation.ts';
import { unbroadcast } from './unbroadcast.ts';

/** What tfjs gives to the kernels of a convolution or a pool. */
type Attributes = Readonly<Record<string, unknown>>;

const run = (kernelName: string, inputs: NamedTensorMap, attributes: Attributes): Tensor =>
  tf.engine().runKernel(kernelName, inputs, attributes as unknown as tf.NamedAttrMap) as unknown as Tensor;

/** Gradients of convolutions, pools and batch normalization. */
export const imageGradients: readonly GradConfig[] = [
  convolution(tf.Conv2D, { ofInput: tf.Conv2DBackpropInput, ofFilter: tf.Conv2DBackpropFilter }),
  convolution(tf.DepthwiseConv2dNative, {
    ofInput: tf.DepthwiseConv2dNativeBackpropInput,
    ofFilter: tf.DepthwiseConv2dNativeBackpropFilter,
  }),
  {
    // What conv2dTranspose runs.
    kernelName: tf.Conv2DBackpropInput,
    inputsToSave: ['dy', 'filter'],
    gradFunc: (ddx, [dy, filter], attrs) => ({
      dy: () => run(tf.Conv2D, { x: ddx as Tensor, filter: filter! }, { dilations: 1, ...(attrs as Attributes) }),
      filter: () => run(tf.Conv2DBackpropFilter, { x: ddx as Tensor, dy: dy! }, { ...(attrs as Attributes), filterShape: filter!.shape }),
    }),
  },
  {
    kernelName: tf.MaxPool,
    inputsToSave: ['x'],
    outputsToSave: [true],
    gradFunc: (dy, [input, output], attrs) => ({
      x: () => run(tf.MaxPoolGrad, { dy: dy as Tensor, input: input!, output: output! }, attrs as Attributes),
    }),
  },
  {
    kernelName: tf.AvgPool,
    inputsToSave: ['x'],
    gradFunc: (dy, [input], attrs) => ({ x: () => run(tf.AvgPoolGrad, { dy: dy as Tensor, input: input! }, attrs as Attributes) }),
  },
  {
    kernelName: tf.FusedBatchNorm,
    inputsToSave: ['x', 'mean', 'variance', 'scale'],
    gradFunc: (given, [x, mean, variance, scale], attrs) => {
      const dy = given as Tensor;
      const inverse = tf.rsqrt(tf.add(variance!, (attrs as { varianceEpsilon: number }).varianceEpsilon));
      const centered = tf.sub(x!, mean!);
      const scaled = tf.mul(tf.mul(dy, scale ?? 1), inverse);
      return {
        x: () => tf.clone(scaled),
        mean: () => tf.neg(unbroadcast(scaled, mean!.shape)),
        variance: () => unbroadcast(tf.mul(tf.mul(scaled, centered), tf.mul(tf.square(inverse), -0.5)), variance!.shape),
        scale: () => unbroadcast(tf.mul(dy, tf.mul(centered, inverse)), mean!.shape),
        offset: () => unbroadcast(dy, mean!.shape),
      };
    },
  },
];

/**
 * tfjs's kernels of these gradients have no dilations, or ignore them: they are given the filter with zeros between its taps,
 * at the cost of a filter of that size. The wasm device's own kernels take dilations.
 */
function convolution(kernelName: string, { ofInput, ofFilter }: { ofInput: string; ofFilter: string }): GradConfig {
  return {
    kernelName,
    inputsToSave: ['x', 'filter'],
    gradFunc: (given, [x, filter], attrs) => {
      const attributes = attrs as Attributes;
      const dy = given as Tensor;
      const [inputShape, filterShape] = [x!.shape, filter!.shape];
      const dilations = attributes['dilations'] as number | [number, number];
      if (tf.backend_util.tupleValuesAreOne(dilations) || tf.getBackend().startsWith(wasmName)) {
        return {
          x: () => run(ofInput, { dy, filter: filter! }, { ...attributes, inputShape }),
          filter: () => run(ofFilter, { x: x!, dy }, { ...attributes, filterShape }),
        };
      }
      const spread = spreadOf(filterShape, typeof dilations === 'number' ? [dilations, dilations] : dilations);
      const plain = { ...attributes, dilations: 1 };
      return {
        x: () => tf.tidy(() => run(ofInput, { dy, filter: spread.taps(filter!) }, { ...plain, inputShape })),
        filter: () => tf.tidy(() => spread.pick(run(ofFilter, { x: x!, dy }, { ...plain, filterShape: spread.shape }))),
      };
    },
  };
}
