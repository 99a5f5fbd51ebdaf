import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import { ConfigError, DeviceError } from '@niwaki/tensor';
import { beforeAll, describe, expect, it } from 'vitest';
import { distance, numbers, useBuild, wasmBuilds } from './wasm-builds.ts';

type Shape = [number, number, number, number];
type Attributes = Readonly<Record<string, unknown>>;

/** Sums in another order, where tfjs's cpu device sums in f64: a few units in the last place of the largest entry. */
const tolerance = 4e-6;

const explicit = [
  [0, 0],
  [1, 2],
  [3, 0],
  [0, 0],
];

/** Sizes of an image, of a filter, and what else tfjs tells its kernels. Depthwise filters end in a multiplier. */
const convolutions: readonly (readonly [Shape, Shape, Attributes])[] = [
  [[1, 1, 1, 1], [1, 1, 1, 1], { strides: 1, pad: 'valid' }],
  [[2, 7, 5, 3], [3, 3, 3, 5], { strides: 1, pad: 'same' }],
  [[3, 9, 8, 1], [5, 2, 1, 7], { strides: 2, pad: 'same' }],
  [[2, 8, 9, 13], [3, 4, 13, 9], { strides: [3, 2], pad: 'valid' }],
  [[2, 10, 11, 4], [3, 5, 4, 6], { strides: [1, 2], pad: explicit }],
  [[1, 12, 9, 2], [4, 3, 2, 3], { strides: 3, pad: 2, dimRoundingMode: 'floor' }],
  [[1, 12, 9, 2], [4, 3, 2, 3], { strides: 3, pad: 2, dimRoundingMode: 'ceil' }],
  [[2, 5, 6, 40], [3, 3, 40, 19], { strides: 1, pad: 'same' }],
  [[2, 33, 19, 3], [3, 3, 3, 4], { strides: 1, pad: 'same' }],
  [[1, 6, 5, 7], [3, 1, 7, 300], { strides: 1, pad: 'valid' }],
  [[3, 1, 41, 6], [1, 5, 6, 8], { strides: 1, pad: 'same' }],
  // Where tfjs-wasm gives zeros, and where it writes beyond its result.
  [[2, 9, 8, 3], [2, 2, 3, 4], { strides: 3, pad: 'same' }],
  [[1, 3, 4, 2], [3, 1, 2, 2], { strides: 1, pad: 1, dimRoundingMode: 'floor' }],
];

const depthwise: readonly (readonly [Shape, Shape, Attributes])[] = [
  [[1, 1, 1, 1], [1, 1, 1, 1], { strides: 1, pad: 'valid' }],
  [[2, 7, 5, 3], [3, 3, 3, 1], { strides: 1, pad: 'same' }],
  [[2, 7, 6, 16], [3, 3, 16, 1], { strides: 1, pad: 'same' }],
  [[2, 9, 8, 22], [3, 2, 22, 1], { strides: 2, pad: 'valid' }],
  [[1, 8, 9, 37], [5, 3, 37, 2], { strides: 3, pad: 'same' }],
  [[3, 6, 5, 5], [2, 3, 5, 3], { strides: 1, pad: explicit }],
  [[1, 11, 9, 4], [3, 3, 4, 1], { strides: 2, pad: 1, dimRoundingMode: 'floor' }],
  [[4, 17, 7, 18], [3, 3, 18, 2], { strides: 1, pad: 'same' }],
  [[2, 9, 8, 3], [3, 1, 3, 2], { strides: 2, pad: 'same' }],
];

const nameOf = (x: Shape, filter: Shape, { strides, pad, dimRoundingMode = '' }: Attributes): string =>
  `[${x}] by [${filter}], strides ${String(strides)}, pad ${String(pad)} ${String(dimRoundingMode)}`;

const random = numbers(23);
const values = (shape: readonly number[]): Float32Array => {
  const made = random(shape);
  const list = made.dataSync() as Float32Array;
  made.dispose();
  return list;
};
const tensorOf = (list: Float32Array, shape: readonly number[]): tf.Tensor => tf.tensor(list, [...shape]);

type Given = Readonly<Record<string, readonly [Float32Array, readonly number[]]>>;

/** What a function makes of inputs on the current device. Throws on a leak. */
function run(make: (inputs: Record<string, tf.Tensor>) => tf.Tensor | tf.Tensor[], inputs: Given): Float32Array[] {
  const before = [tf.memory().numTensors, tf.engine().backend.numDataIds()];
  const made = tf.tidy(() => {
    const tensors = Object.fromEntries(Object.entries(inputs).map(([name, [list, shape]]) => [name, tensorOf(list, shape)]));
    return [make(tensors)].flat().map((each) => each.dataSync() as Float32Array);
  });
  expect([tf.memory().numTensors, tf.engine().backend.numDataIds()]).toEqual(before);
  return made;
}

const kernel =
  (name: string, attributes: Attributes) =>
  (inputs: Record<string, tf.Tensor>): tf.Tensor =>
    tf.engine().runKernel(name, inputs, attributes as unknown as tf.NamedAttrMap) as tf.Tensor;

/** The same on tfjs's cpu device, with kernels of its own. */
async function onCpu<T>(compute: () => T): Promise<T> {
  const name = tf.getBackend();
  await tf.setBackend('cpu');
  try {
    return compute();
  } finally {
    await tf.setBackend(name);
  }
}

async function expectParity(make: Parameters<typeof run>[0], inputs: Given): Promise<void> {
  const wanted = await onCpu(() => run(make, inputs));
  const given = run(make, inputs);
  expect(given.length).toBe(wanted.length);
  given.forEach((list, i) => expect(distance(list, wanted[i]!), `result ${i}`).toBeLessThan(tolerance));
}

const sizesOf = (x: Shape, filter: Shape, { strides, pad, dimRoundingMode, dilations = 1 }: Attributes, isDepthwise: boolean) =>
  tf.backend_util.computeConv2DInfo(
    x,
    filter,
    strides as number,
    dilations as number,
    pad as number,
    dimRoundingMode as never,
    isDepthwise,
  );

/** Both builds; that threads change nothing is a test of its own. */
const builds = Object.entries(wasmBuilds).filter(([, { threads, relaxed }]) => threads === (relaxed === false ? 2 : 1));

describe.each(builds)('Convolutions and their gradients equal those of the cpu device (%s)', (_, options) => {
  beforeAll(() => useBuild(options));

  it.each(convolutions.map(([x, filter, attributes]) => [nameOf(x, filter, attributes), x, filter, attributes] as const))(
    'convolution: %s',
    async (_name, x, filter, attributes) => {
      const { outShape } = sizesOf(x, filter, attributes, false);
      const dy = [values(outShape), outShape] as const;
      const given = { dataFormat: 'NHWC', dilations: 1, ...attributes };
      await expectParity(kernel('Conv2D', given), { x: [values(x), x], filter: [values(filter), filter] });
      await expectParity(kernel('Conv2DBackpropFilter', { ...given, filterShape: filter }), { x: [values(x), x], dy });
      await expectParity(kernel('Conv2DBackpropInput', { ...given, inputShape: x }), { dy, filter: [values(filter), filter] });
    },
  );

  it('with the channels of images first', async () => {
    const [x, filter, dy] = [
      [2, 5, 9, 7],
      [3, 3, 5, 6],
      [2, 6, 5, 4],
    ] as const;
    const attributes = { strides: 2, pad: 'same', dataFormat: 'NCHW', dilations: 1 };
    const given: Given = { x: [values(x), x], dy: [values(dy), dy], filter: [values(filter), filter] };
    await expectParity(kernel('Conv2D', attributes), { x: given['x']!, filter: given['filter']! });
    await expectParity(kernel('Conv2DBackpropFilter', { ...attributes, filterShape: filter }), { x: given['x']!, dy: given['dy']! });
    await expectParity(kernel('Conv2DBackpropInput', { ...attributes, inputShape: x }), { dy: given['dy']!, filter: given['filter']! });
  });

  it.each([
    [[1, 1, 1, 1], { filterSize: 1, strides: 1, pad: 'valid' }],
    [[2, 9, 7, 5], { filterSize: 2, strides: 2, pad: 'valid' }],
    [[2, 8, 7, 19], { filterSize: 3, strides: 1, pad: 'same' }],
    [[3, 9, 8, 34], { filterSize: [3, 2], strides: [2, 1], pad: 'same' }],
  ] as const)('of the largest of a window, at or below 0 too: [%s], %o', async (shape, attributes) => {
    // Whole numbers: many windows have their largest entry more than once, and the first is to get it all.
    const x = values(shape).map((value) => Math.round(4 * value) - 4);
    const { outShape } = tf.backend_util.computePool2DInfo(
      [...shape],
      attributes.filterSize as number,
      attributes.strides as number,
      1,
      attributes.pad,
    );
    const grad = ({ input, dy }: Record<string, tf.Tensor>): tf.Tensor => {
      const output = tf.maxPool(input as tf.Tensor4D, attributes.filterSize as number, attributes.strides as number, attributes.pad);
      return kernel('MaxPoolGrad', attributes)({ dy: dy!, input: input!, output });
    };
    await expectParity(grad, { input: [x, shape], dy: [values(outShape), outShape] });
  });

  it.each(depthwise.map(([x, filter, attributes]) => [nameOf(x, filter, attributes), x, filter, attributes] as const))(
    'depthwise: %s',
    async (_name, x, filter, attributes) => {
      const { outShape } = sizesOf(x, filter, attributes, true);
      const all: Given = { x: [values(x), x], dy: [values(outShape), outShape], filter: [values(filter), filter] };
      const given = { dilations: 1, ...attributes };
      await expectParity(kernel('DepthwiseConv2dNative', given), { x: all['x']!, filter: all['filter']! });
      await expectParity(kernel('DepthwiseConv2dNativeBackpropFilter', { ...given, filterShape: filter }), {
        x: all['x']!,
        dy: all['dy']!,
      });
      await expectParity(kernel('DepthwiseConv2dNativeBackpropInput', { ...given, inputShape: x }), {
        dy: all['dy']!,
        filter: all['filter']!,
      });
    },
  );

  it('with dilated filters, and with a bias and an activation in one', async () => {
    const x: Shape = [2, 11, 13, 5];
    const [filter, depth, bias, alpha] = [[3, 2, 5, 6], [3, 2, 5, 2], [6], [10]] as const;
    const inputs: Given = {
      x: [values(x), x],
      filter: [values(filter), filter],
      depth: [values(depth), depth],
      bias: [values(bias), bias],
    };
    const shared = { strides: 1, pad: 'same', dilations: [2, 3] as [number, number] } as const;
    const image = (a: Record<string, tf.Tensor>): { x: tf.Tensor4D } => ({ x: a['x'] as tf.Tensor4D });
    await expectParity(
      (a) => [
        tf.conv2d(image(a).x, a['filter'] as tf.Tensor4D, 1, 'same', 'NHWC', [2, 3]),
        tf.depthwiseConv2d(image(a).x, a['depth'] as tf.Tensor4D, 1, 'same', 'NHWC', [2, 3]),
        tf.fused.conv2d({ ...image(a), filter: a['filter'] as tf.Tensor4D, ...shared, bias: a['bias']!, activation: 'relu' }),
        tf.fused.conv2d({ ...image(a), filter: a['filter'] as tf.Tensor4D, ...shared }),
        tf.fused.depthwiseConv2d({
          ...image(a),
          filter: a['depth'] as tf.Tensor4D,
          ...shared,
          activation: 'prelu',
          preluActivationWeights: a['alpha']!,
        }),
      ],
      { ...inputs, alpha: [values(alpha), alpha] },
    );
  });

  it('of dilated depthwise filters, which the cpu device has only with zeros between the taps', async () => {
    const x: Shape = [2, 11, 13, 6];
    const filter: Shape = [3, 2, 6, 2];
    const dilations: [number, number] = [2, 3];
    const wide: Shape = [5, 4, 6, 2];
    const attributes = { strides: 1, pad: 'same', dilations };
    const { outShape } = sizesOf(x, filter, attributes, true);
    const [image, dy, taps] = [values(x), values(outShape), values(filter)];
    const at = (r: number, c: number): number => (r * dilations[0] * wide[1] + c * dilations[1]) * 12;
    const spread = new Float32Array(wide.reduce((a, b) => a * b));
    for (let r = 0; r < 3; r++) for (let c = 0; c < 2; c++) spread.set(taps.subarray((r * 2 + c) * 12, (r * 2 + c + 1) * 12), at(r, c));
    const undilated = { ...attributes, dilations: 1 };
    const [[wantedFilter], [wantedInput]] = await onCpu(
      () =>
        [
          run(kernel('DepthwiseConv2dNativeBackpropFilter', { ...undilated, filterShape: wide }), { x: [image, x], dy: [dy, outShape] }),
          run(kernel('DepthwiseConv2dNativeBackpropInput', { ...undilated, inputShape: x }), {
            dy: [dy, outShape],
            filter: [spread, wide],
          }),
        ] as [Float32Array[], Float32Array[]],
    );
    const [gotFilter] = run(kernel('DepthwiseConv2dNativeBackpropFilter', { ...attributes, filterShape: filter }), {
      x: [image, x],
      dy: [dy, outShape],
    });
    const sampled = Array.from({ length: 6 }, (_each, tap) => [
      ...wantedFilter!.subarray(at(tap >> 1, tap & 1), at(tap >> 1, tap & 1) + 12),
    ]);
    expect(distance(gotFilter!, sampled.flat())).toBeLessThan(tolerance);
    const [gotInput] = run(kernel('DepthwiseConv2dNativeBackpropInput', { ...attributes, inputShape: x }), {
      dy: [dy, outShape],
      filter: [taps, filter],
    });
    expect(distance(gotInput!, wantedInput!)).toBeLessThan(tolerance);
  });

  const x: Shape = [2, 9, 7, 5];
  const layers: Readonly<Record<string, readonly [(x: tf.Tensor, ...filters: tf.Tensor[]) => tf.Tensor, readonly (readonly number[])[]]>> =
    {
      conv2d: [(a, w) => tf.conv2d(a as tf.Tensor4D, w as tf.Tensor4D, 2, 'same'), [x, [3, 3, 5, 6]]],
      depthwiseConv2d: [(a, w) => tf.depthwiseConv2d(a as tf.Tensor4D, w as tf.Tensor4D, 1, 'same'), [x, [3, 3, 5, 2]]],
      separableConv2d: [
        (a, w, p) => tf.separableConv2d(a as tf.Tensor4D, w as tf.Tensor4D, p as tf.Tensor4D, 1, 'valid'),
        [x, [3, 3, 5, 2], [1, 1, 10, 4]],
      ],
      conv1d: [
        (a, w) => tf.conv1d(a as tf.Tensor3D, w as tf.Tensor3D, 2, 'same'),
        [
          [3, 17, 5],
          [4, 5, 6],
        ],
      ],
      conv2dTranspose: [(a, w) => tf.conv2dTranspose(a as tf.Tensor4D, w as tf.Tensor4D, [2, 18, 14, 3], 2, 'same'), [x, [3, 3, 3, 5]]],
    };

  it.each(Object.entries(layers))('through tf.grads of %s', async (_name, [layer, shapes]) => {
    const inputs: Given = Object.fromEntries(shapes.map((shape, i) => [i, [values(shape), shape]]));
    const loss = (...all: tf.Tensor[]): tf.Scalar => tf.sum(tf.square(layer(all[0]!, ...all.slice(1)))) as tf.Scalar;
    await expectParity((tensors) => tf.grads(loss)(Object.values(tensors)), inputs);
  });

  it('are zero where there is nothing to sum', () => {
    const attributes = { strides: 1, pad: 'same', dataFormat: 'NHWC', dilations: 1, filterShape: [3, 3, 2, 4] };
    const none: Given = { x: [new Float32Array(0), [0, 5, 5, 2]], dy: [new Float32Array(0), [0, 5, 5, 4]] };
    expect(run(kernel('Conv2DBackpropFilter', attributes), none)[0]).toEqual(new Float32Array(72));
    const deep: Given = { x: none['x']!, dy: [new Float32Array(0), [0, 5, 5, 8]] };
    expect(run(kernel('DepthwiseConv2dNativeBackpropFilter', attributes), deep)[0]).toEqual(new Float32Array(72));
  });
});

it('says what it does not take', async () => {
  await useBuild({ threads: 1 });
  const x = tf.zeros([1, 3, 3, 1], 'int32');
  const attributes = { strides: 1, pad: 'same', dataFormat: 'NHWC', filterShape: [3, 3, 1, 1] };
  expect(() => kernel('Conv2DBackpropFilter', attributes)({ x, dy: x })).toThrow(ConfigError);
  expect(() => kernel('Conv2DBackpropFilter', attributes)({ x, dy: x })).toThrow(/float32 only, got int32/);
  x.dispose();
  const image = tf.zeros([1, 2, 3, 3]);
  const filter = tf.zeros([3, 3, 2, 1]);
  const first = { strides: 1, pad: 'same', dataFormat: 'NCHW', dilations: 1 };
  for (const name of ['FusedConv2D', 'DepthwiseConv2dNative', 'FusedDepthwiseConv2D'])
    expect(() => kernel(name, first)({ x: image, filter })).toThrow(/channels last only/);
  tf.dispose([image, filter]);
});

it('says that the heap is full, and works on', async () => {
  await useBuild({ threads: 1 });
  const before = [tf.memory().numTensors, tf.engine().backend.numDataIds()];
  // dx alone would take 8 GB.
  const small = tf.zeros([1, 1, 1, 1]);
  const attributes = { strides: 50_000, pad: 'valid', dilations: 1, dataFormat: 'NHWC', inputShape: [1, 50_000, 40_000, 1] };
  for (const name of ['Conv2DBackpropInput', 'DepthwiseConv2dNativeBackpropInput'])
    expect(() => kernel(name, attributes)({ dy: small, filter: small })).toThrow(DeviceError);
  small.dispose();
  expect([tf.memory().numTensors, tf.engine().backend.numDataIds()]).toEqual(before);
  expect(run(({ x }) => tf.square(x!), { x: [new Float32Array([3]), [1]] })[0]![0]).toBe(9);
});

it('trains a small net of convolutions by the losses of the cpu device', async () => {
  const [images, first] = [values([6, 11, 9, 2]), values([3, 3, 2, 8])];
  const rest = (
    [
      [3, 3, 8, 2],
      [1, 1, 16, 12],
      [72, 5],
    ] as const
  ).map((shape) => [values(shape), shape] as const);
  const losses = (): number[] => {
    const before = tf.memory().numTensors;
    const x = tf.tensor4d(images, [6, 11, 9, 2]);
    const labels = tf.tidy(() =>
      tf.oneHot(
        tf.tensor1d(
          Int32Array.from({ length: 6 }, (_, i) => i % 5),
          'int32',
        ),
        5,
      ),
    );
    const variable = (make: () => tf.Tensor): tf.Variable => tf.tidy(() => tf.variable(make()));
    const made = [[first, [3, 3, 2, 8]] as const, ...rest].map(([list, shape]) => variable(() => tf.mul(tf.tensor(list, [...shape]), 0.4)));
    const [filter, depth, point, dense] = made as unknown as [tf.Tensor4D, tf.Tensor4D, tf.Tensor4D, tf.Tensor2D];
    const [offset, scale] = [variable(() => tf.zeros([8])), variable(() => tf.ones([8]))];
    const optimizer = tf.train.adam(0.01);
    const loss = (): tf.Scalar => {
      const convolved = tf.conv2d(x, filter, 1, 'same');
      const { mean, variance } = tf.moments(convolved, [0, 1, 2]);
      const normal = tf.batchNorm(convolved, mean as tf.Tensor1D, variance as tf.Tensor1D, offset as tf.Tensor1D, scale as tf.Tensor1D);
      const pooled = tf.maxPool(tf.relu(normal), 2, 2, 'same');
      const separate = tf.relu(tf.separableConv2d(pooled, depth, point, 1, 'same'));
      const features = tf.reshape(tf.avgPool(separate, [3, 3], [3, 2], 'same'), [6, 72]);
      return tf.losses.softmaxCrossEntropy(labels, tf.matMul(features, dense));
    };
    const found = Array.from({ length: 8 }, () => {
      const value = optimizer.minimize(loss, true)!;
      const [number] = value.dataSync();
      value.dispose();
      return number!;
    });
    optimizer.dispose();
    tf.dispose([x, labels, ...made, offset, scale]);
    expect(tf.memory().numTensors).toBe(before);
    return found;
  };
  await useBuild({ threads: 2 });
  const given = losses();
  const wanted = await onCpu(losses);
  wanted.forEach((value, i) => expect(given[i]! / value).toBeCloseTo(1, 4));
  expect(given.at(-1)!).toBeLessThan(0.7 * given[0]!);
});

it('has the same bits on one thread and on two', async () => {
  const [x, deep] = [
    [2, 31, 29, 24],
    [2, 31, 29, 48],
  ] as [Shape, Shape];
  const [image, dy, wide, filter, square] = [values(x), values(x), values(deep), values([3, 3, 24, 2]), values([3, 3, 24, 48])];
  const all = (): Float32Array[] => [
    ...run(kernel('Conv2D', { strides: 1, pad: 'same', dataFormat: 'NHWC', dilations: 1 }), {
      x: [image, x],
      filter: [square, [3, 3, 24, 48]],
    }),
    ...run(kernel('DepthwiseConv2dNative', { strides: 1, pad: 'same', dilations: 1 }), {
      x: [image, x],
      filter: [filter, [3, 3, 24, 2]],
    }),
    ...run(kernel('Conv2DBackpropFilter', { strides: 1, pad: 'same', dataFormat: 'NHWC', filterShape: [3, 3, 24, 48] }), {
      x: [image, x],
      dy: [wide, deep],
    }),
    ...run(kernel('Conv2DBackpropInput', { strides: 1, pad: 'same', dataFormat: 'NHWC', inputShape: x }), {
      dy: [wide, deep],
      filter: [square, [3, 3, 24, 48]],
    }),
    ...run(
      ({ input, output }) =>
        kernel('MaxPoolGrad', { filterSize: 3, strides: 1, pad: 'same' })({ dy: output!, input: input!, output: output! }),
      { input: [image, x], output: [dy, x] },
    ),
    ...run(kernel('DepthwiseConv2dNativeBackpropFilter', { strides: 1, pad: 'same', dilations: 1, filterShape: [3, 3, 24, 1] }), {
      x: [image, x],
      dy: [dy, x],
    }),
    ...run(kernel('DepthwiseConv2dNativeBackpropInput', { strides: 1, pad: 'same', dilations: 1, inputShape: x }), {
      dy: [wide, deep],
      filter: [filter, [3, 3, 24, 2]],
    }),
  ];
  await useBuild({ threads: 1 });
  const alone = all();
  await useBuild({ threads: 2 });
  all().forEach((list, i) => expect(distance(list, alone[i]!)).toBe(0));
});
