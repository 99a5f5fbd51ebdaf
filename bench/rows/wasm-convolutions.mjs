/**
 * Convolutions on the wasm device. Gradients against the cpu device of tfjs: without ours, the one on which a convolution
 * trains in Node. What tfjs-wasm has, against it.
 */
import '@tensorflow/tfjs-backend-cpu';
import '@tensorflow/tfjs-backend-wasm';
import { engine, setBackend } from '@tensorflow/tfjs-core';
import { init } from '../../packages/backend/dist/index.js';
import { tensor } from '../../packages/tensor/dist/index.js';

const batch = 4;
const side = 28;
const window = { strides: 1, pad: 'same', dilations: 1, dataFormat: 'NHWC' };

const wave = (shape, step) =>
  tensor(
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => Math.sin(step * i)),
    shape,
  );

/** Least milliseconds of computing, of each of the kernels by itself. */
function least(kernels, turns) {
  const best = kernels.map(() => Infinity);
  for (let turn = 0; turn < turns; turn++) {
    for (const [i, [name, inputs, attributes]] of kernels.entries()) {
      const start = process.cpuUsage();
      engine().runKernel(name, inputs, attributes).dispose();
      const { user, system } = process.cpuUsage(start);
      best[i] = Math.min(best[i], (user + system) / 1000);
    }
  }
  return best.reduce((sum, each) => sum + each, 0);
}

const row = (name, floor, kernels, { peer = 'cpu', turns: theirTurns = 1 } = {}) => ({
  name: `wasm ${name}`,
  floor,
  unit: `tfjs-${peer}'s speed`,
  device: 'wasm',
  threads: 1,
  measure: async () => {
    const best = { ours: Infinity, theirs: Infinity };
    for (let round = 0; round < 2; round++) {
      for (const [who, use, turns] of [
        ['ours', () => init({ device: 'wasm', threads: 1 }), 10],
        ['theirs', () => setBackend(peer), theirTurns],
      ]) {
        await use();
        const list = kernels();
        best[who] = Math.min(best[who], least(list, turns));
        for (const tensors of new Set(list.map(([, inputs]) => inputs)))
          for (const each of Object.values(tensors)) if (!each.isDisposed) each.dispose();
      }
    }
    return {
      ratio: best.theirs / best.ours,
      milliseconds: Number(best.ours.toFixed(3)),
      against: Number(best.theirs.toFixed(3)),
    };
  },
});

/** Of an image [4, 28, 28, in] and a filter [3, 3, in, out]. */
function convolution(inChannels, outChannels) {
  const [x, dy, filter] = [
    wave([batch, side, side, inChannels], 0.3),
    wave([batch, side, side, outChannels], 0.7),
    wave([3, 3, inChannels, outChannels], 1.1),
  ];
  return [
    ['Conv2DBackpropFilter', { x, dy }, { ...window, filterShape: filter.shape }],
    ['Conv2DBackpropInput', { dy, filter }, { ...window, inputShape: x.shape }],
  ];
}

function forward(inChannels, outChannels) {
  const [x, filter] = [wave([batch, side, side, inChannels], 0.3), wave([3, 3, inChannels, outChannels], 1.1)];
  return ['Conv2D', { x, filter }, window];
}

function depthwise(channels) {
  const [x, dy, filter] = [
    wave([batch, side, side, channels], 0.3),
    wave([batch, side, side, channels], 0.7),
    wave([3, 3, channels, 1], 1.1),
  ];
  return [
    ['DepthwiseConv2dNativeBackpropFilter', { x, dy }, { ...window, filterShape: filter.shape }],
    ['DepthwiseConv2dNativeBackpropInput', { dy, filter }, { ...window, inputShape: x.shape }],
  ];
}

export const rows = [
  row('gradients of a convolution, 16 to 32 channels', 400, () => convolution(16, 32)),
  row('gradients of a depthwise convolution, 64 channels', 200, () => depthwise(64)),
  row("convolution's gradient of its image, 16 to 32 channels", 4, () => [convolution(16, 32)[1]], { peer: 'wasm', turns: 5 }),
  row('convolution, 64 to 64 channels', 1, () => [forward(64, 64)], { peer: 'wasm', turns: 10 }),
];
