/** Products of a stack of matrices over runs of rows, against one expert after another on the same device. */
import { concat, dispose, expandDims, matMul, randomNormal, reshape, slice, tensor1d, tidy, zeros } from '@tensorflow/tfjs-core';
import { init } from '../../packages/backend/dist/index.js';
import { groupedMatMulGradOp, groupedMatMulOp, packedGroupedMatMulOp, packedMatMulOp, runOp } from '../../packages/tensor/dist/index.js';
import { against } from '../against.mjs';

const [count, out, width] = [32, 256, 512];
/** 128 tokens of 4 picks each: some experts get many, some few. */
const ends = Array.from({ length: count + 1 }, (_, e) => Math.round(512 * (e / count) ** 1.5));
const slots = ends[count];

/** Calls over the rows of each expert that has some, put together again. */
const loop = (x, each) =>
  tidy(() => {
    const parts = [];
    for (let e = 0; e < count; e++) {
      const own = ends[e + 1] - ends[e];
      if (own > 0) parts.push(each(slice(x, [ends[e], 0], [own, x.shape[1]]), e));
    }
    return concat(parts);
  });

async function compare(threads, tensors, ours, theirs) {
  const use = () => init({ device: 'wasm', threads });
  await use();
  const given = tensors();
  const side = (call) => ({ use, once: () => dispose(call(given)) });
  const result = await against(side(ours), side(theirs), { threads, turns: 60 });
  dispose(given);
  return result;
}

const row = (name, threads, floor, measure) => ({
  name: `wasm ${count} experts, ${name}, ${threads} thread${threads > 1 ? 's' : ''}`,
  floor,
  unit: 'the speed of a loop over experts',
  device: 'wasm',
  threads,
  measure: () => measure(threads),
});

const runs = () => tensor1d(ends, 'int32');
/** What a loop multiplies with: matrices that are stored apart. */
const apart = (w) => Array.from({ length: count }, (_, e) => tidy(() => reshape(slice(w, [e, 0, 0], [1, out, width]), [out, width])));

const f32 = (threads) =>
  compare(
    threads,
    () => {
      const w = randomNormal([count, out, width]);
      return { x: randomNormal([slots, width]), w, runs: runs(), experts: apart(w) };
    },
    ({ x, w, runs: of }) => runOp(groupedMatMulOp, { x, w, runs: of }, { transposed: false }),
    ({ x, experts }) => loop(x, (own, e) => matMul(own, experts[e], false, true)),
  );

const gradient = (threads) =>
  compare(
    threads,
    () => ({ x: randomNormal([slots, width]), dy: randomNormal([slots, out]), runs: runs() }),
    ({ x, dy, runs: of }) => runOp(groupedMatMulGradOp, { dy, x, runs: of }, {}),
    ({ x, dy }) =>
      tidy(() => {
        const of = (from, e) => slice(from, [ends[e], 0], [ends[e + 1] - ends[e], from.shape[1]]);
        return concat(
          ends
            .slice(1)
            .map((end, e) => (end === ends[e] ? zeros([1, out, width]) : expandDims(matMul(of(dy, e), of(x, e), true, false), 0))),
        );
      }),
  );

const elements = out * width;
const codebook = () => randomNormal([16]);
const nf4 = (threads) => {
  const shape = { format: 'codebook4', out, in: width, blockSize: 64, transposed: false };
  return compare(
    threads,
    () => ({
      x: randomNormal([slots, width]),
      runs: runs(),
      parts: {
        codes: zeros([(count * elements) / 8], 'int32'),
        codebook: tidy(() => concat(Array.from({ length: count }, codebook))),
        absmax: randomNormal([(count * elements) / 64]),
      },
      experts: Array.from({ length: count }, () => ({
        codes: zeros([elements / 8], 'int32'),
        codebook: codebook(),
        absmax: randomNormal([elements / 64]),
      })),
    }),
    ({ x, runs: of, parts }) => runOp(packedGroupedMatMulOp, { x, runs: of, ...parts }, shape),
    ({ x, experts }) => loop(x, (own, e) => runOp(packedMatMulOp, { x: own, ...experts[e] }, shape)[0]),
  );
};

export const rows = [
  row('x·Wᵀ', 1, 1.4, f32),
  row('x·Wᵀ', 2, 1.8, f32),
  row('dyᵀ·x', 1, 2, gradient),
  row('dyᵀ·x', 2, 2.5, gradient),
  row('NF4 x·Wᵀ', 1, 1.4, nf4),
  row('NF4 x·Wᵀ', 2, 1.2, nf4),
];
