/** The wasm device's products against those of tfjs-backend-wasm, 256 x 1024 x 1024. */
import '@tensorflow/tfjs-backend-wasm';
import { dispose, engine, keep, matMul, randomNormal, setBackend, tidy, zeros } from '@tensorflow/tfjs-core';
import { init } from '../../packages/backend/dist/index.js';
import { plain, relaxed } from '../../packages/backend/dist/generated/binaries.js';
import { against } from '../against.mjs';

const [height, depth, columns] = [256, 1024, 1024];

/** One side: a device, tensors on it, and a call. */
async function side(use, make, call) {
  await use();
  const tensors = make();
  return { use, once: () => dispose(call(tensors)), end: () => dispose(tensors) };
}

const stock = () => setBackend('wasm');
const ours = (threads) => () => init({ device: 'wasm', threads });
const operands = (ta, tb) => () =>
  tidy(() => ({
    a: keep(randomNormal(ta ? [depth, height] : [height, depth])),
    b: keep(randomNormal(tb ? [columns, depth] : [depth, columns])),
  }));
const product =
  (ta, tb) =>
  ({ a, b }) =>
    matMul(a, b, ta, tb);

async function compare(left, right, options) {
  const result = await against(left, right, options);
  left.end();
  right.end();
  return result;
}

const f32 = (name, threads, floor, [ta, tb], options) => ({
  name: `wasm f32 ${name}, ${threads} thread${threads > 1 ? 's' : ''}`,
  floor,
  unit: "tfjs-wasm's speed",
  device: 'wasm',
  threads,
  measure: async () =>
    compare(await side(ours(threads), operands(ta, tb), product(ta, tb)), await side(stock, operands(ta, tb), product(ta, tb)), {
      ...options,
      threads,
    }),
});

const elements = columns * depth;
const parts = {
  codebook4: () => ({ codes: zeros([elements / 8], 'int32'), codebook: randomNormal([16]), absmax: randomNormal([elements / 64]) }),
  Q4_1: () => ({ blocks: zeros([(elements / 32) * 5], 'int32') }),
};

/** A packed product against tfjs multiplying the same matrix as floats, in the one case that it is fast in. */
const packed = (name, format, transposed) => ({
  name: `wasm ${name}, 1 thread`,
  floor: 1.5,
  unit: "tfjs-wasm's f32 speed",
  device: 'wasm',
  threads: 1,
  measure: async () => {
    const shape = { format, out: columns, in: depth, blockSize: 64, transposed };
    const make = () => ({ x: randomNormal([height, depth]), ...parts[format]() });
    const left = await side(ours(1), make, (inputs) => engine().runKernel('NiwakiPackedMatMul', inputs, shape));
    return compare(left, await side(stock, operands(false, false), product(false, false)), { threads: 1 });
  },
});

/** What generation does with a model, whose matrices are in no cache: tfjs reads 6.4 times the bytes. */
const oneRow = {
  name: 'wasm Q4_1 x·Wᵀ of one row, 1 thread',
  floor: 1.2,
  unit: "tfjs-wasm's f32 speed",
  device: 'wasm',
  threads: 1,
  measure: async () => {
    const side4096 = 4096;
    const shape = { format: 'Q4_1', out: side4096, in: side4096, blockSize: 32, transposed: false };
    const make = () => ({ x: randomNormal([1, side4096]), blocks: zeros([(side4096 ** 2 / 32) * 5], 'int32') });
    const floats = () => tidy(() => ({ a: keep(randomNormal([1, side4096])), b: keep(randomNormal([side4096, side4096])) }));
    const left = await side(ours(1), make, (inputs) => engine().runKernel('NiwakiPackedMatMul', inputs, shape));
    return compare(left, await side(stock, floats, product(false, false)), { threads: 1 });
  },
};

/** Multiply-adds on registers alone, by the same build of the kernels: no product can be faster. */
async function peakOf(description) {
  const binary = Buffer.from(description.includes('relaxed') ? relaxed : plain, 'base64');
  const memory = new WebAssembly.Memory({ initial: 1 });
  const { instance } = await WebAssembly.instantiate(binary, { env: { memory, abort() {} } });
  const flopsPerRound = 96;
  const count = Math.round((2 * height * depth * columns) / flopsPerRound);
  return { use: async () => {}, once: () => instance.exports.peak(count, 1.5) };
}

/** Under 1: the share of the machine's own limit, which is what remains comparable between machines. */
const ofPeak = {
  name: "wasm f32 A·B, of the core's 128-bit peak",
  floor: 0.85,
  unit: 'the peak',
  device: 'wasm',
  threads: 1,
  measure: async () => {
    const { description } = await init({ device: 'wasm', threads: 1 });
    const left = await side(ours(1), operands(false, false), product(false, false));
    const result = await against(left, await peakOf(description), { threads: 1 });
    left.end();
    return result;
  },
};

const slow = { turns: 2 };

export const rows = [
  ofPeak,
  f32('A·B', 1, 1.6, [false, false]),
  f32('A·B', 2, 2.8, [false, false]),
  f32('A·Bᵀ', 1, 20, [false, true], slow),
  f32('Aᵀ·B', 1, 20, [true, false], slow),
  packed('NF4 x·Wᵀ', 'codebook4', false),
  packed('NF4 x·W (gradient)', 'codebook4', true),
  packed('Q4_1 x·Wᵀ', 'Q4_1', false),
  packed('Q4_1 x·W (gradient)', 'Q4_1', true),
  oneRow,
];
