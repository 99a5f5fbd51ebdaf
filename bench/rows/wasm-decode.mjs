/** One row of x times 2048 x 2048, matrices in rotation so that none is in a cache: what a token of generation is made of. */
import { homedir } from 'node:os';
import '@tensorflow/tfjs-backend-wasm';
import { concat, dispose, matMul, randomNormal, setBackend, tensor1d, zeros } from '@tensorflow/tfjs-core';
import { init } from '../../packages/backend/dist/index.js';
import { integerMatMul, putRows } from '../../packages/tensor/dist/index.js';
import { against } from '../against.mjs';
import { here, jsonOf, middleRound } from '../processes.mjs';

const side = 2048;
/** Together 56 MB packed, 400 MB as floats. */
const matrices = 24;
/** Products in a turn, one after another as in a model: threads need not be woken for each. */
const perTurn = 8;

const nf4 = [
  -1, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0, 0.0795803, 0.1609302, 0.2461123, 0.33791524,
  0.44070983, 0.562617, 0.72295684, 1,
];
const words = (turn, bytes) => {
  let state = turn + 1;
  return tensor1d(
    new Int32Array(bytes / 4).map(() => (state = (Math.imul(state, 1664525) + 1013904223) | 0)),
    'int32',
  );
};
const group = 64;
const integers = (bits) => ({
  make: (turn) => ({
    codes: words(turn, (side ** 2 * bits) / 8),
    scales: randomNormal([side ** 2 / group]),
    zeros: zeros([side ** 2 / group / 4], 'int32'),
  }),
  shape: { format: 'affine', bits, out: side, in: side, blockSize: group },
});
/** How W is stored. */
const formats = {
  NF4: {
    make: (turn) => ({ codes: words(turn, side ** 2 / 2), codebook: tensor1d(nf4), absmax: randomNormal([side ** 2 / group]) }),
    shape: { format: 'codebook4', out: side, in: side, blockSize: group },
  },
  int3: integers(3),
  int4: integers(4),
  Q4_K: {
    make: () => ({ blocks: zeros([(side ** 2 / 256) * 36], 'int32') }),
    shape: { format: 'Q4_K', out: side, in: side, blockSize: 256 },
  },
};

async function sideOf(use, make, call) {
  await use();
  const x = randomNormal([1, side]);
  const all = Array.from({ length: matrices }, (_, turn) => make(turn));
  let turn = 0;
  const once = () => {
    for (let i = 0; i < perTurn; i++) dispose(call(x, all[turn++ % matrices]));
  };
  const end = () => dispose([x, ...all]);
  return { use, once, end };
}

const product = (format, activations, threads, floor) => ({
  name: `wasm decode, ${format}, ${activations} activations, ${threads} thread${threads > 1 ? 's' : ''}`,
  floor,
  unit: "tfjs-wasm's f32 speed",
  device: 'wasm',
  threads,
  measure: async () => {
    const { make, shape } = formats[format];
    const left = await sideOf(
      () => init({ device: 'wasm', threads }),
      make,
      (x, parts) => integerMatMul(x, parts, shape, { activations }),
    );
    const right = await sideOf(
      () => setBackend('wasm'),
      (turn) => ({ w: randomNormal([side, side], 0, 1, 'float32', turn + 1) }),
      (x, { w }) => matMul(x, w),
    );
    const result = await against(left, right, { turns: 60, threads });
    left.end();
    right.end();
    return result;
  },
});

/** A token more behind a thousand, keys or values of one layer of SmolLM2. */
const cached = {
  name: 'wasm, a row more in a cache of 1000',
  floor: 10,
  unit: 'the speed of a concat',
  device: 'wasm',
  threads: 1,
  measure: async () => {
    const use = () => init({ device: 'wasm', threads: 1 });
    await use();
    const fresh = randomNormal([1, 1, 3, 64]);
    const at = tensor1d([1000], 'int32');
    let room = zeros([1, 1024, 3, 64]);
    const put = () => {
      const next = putRows(room, fresh, at, { owned: true });
      room.dispose();
      room = next;
    };
    const past = randomNormal([1, 1000, 3, 64]);
    const join = () => concat([past, fresh], 1).dispose();
    const often = (once) => ({ use, once: () => Array.from({ length: 200 }, once) });
    const result = await against(often(put), often(join), { turns: 30, threads: 1 });
    dispose([fresh, at, room, past]);
    return result;
  },
};

/** Whole processes, turn by turn. */
const tokens = (activations, floor) => ({
  name: `decode of SmolLM2's shape, Q4_1, ${activations} activations`,
  floor,
  unit: 'the speed of exact activations',
  device: 'wasm',
  threads: 2,
  measure: async () => {
    const run = (mode) => jsonOf(process.execPath, [here('run.mjs'), 'decode', '--json', '--steps', '48', '--activations', mode]);
    const best = { exact: 0, [activations]: 0 };
    for (let round = 0; round < 3; round++) {
      for (const mode of Object.keys(best)) {
        const result = run(mode);
        if (result.skipped !== undefined) throw new Error(result.skipped);
        best[mode] = Math.max(best[mode], result.bestTokensPerSecond);
      }
    }
    return { ratio: best[activations] / best.exact, tokensPerSecond: Math.round(best[activations]), against: Math.round(best.exact) };
  },
});

const file = process.env.NIWAKI_GGUF ?? `${homedir()}/.cache/niwaki/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf`;

/** llama.cpp on the file whose shape the job has. Python is $PYTHON or python3, the file $NIWAKI_GGUF. */
const againstLlamaCpp = (activations, floor) => ({
  name: `decode of SmolLM2, Q4_1, ${activations} activations`,
  floor,
  unit: "llama.cpp's tokens per second",
  device: 'wasm',
  threads: 2,
  measure: async () => {
    const { skipped, ratio, ours, theirs } = middleRound(
      {
        theirs: () => jsonOf(process.env.PYTHON ?? 'python3', [here('peers/llama_cpp_decode.py'), '--model', file]),
        ours: () => jsonOf(process.execPath, [here('run.mjs'), 'decode', '--json', '--activations', activations]),
      },
      (own, other) => own.bestTokensPerSecond / other.bestTokensPerSecond,
    );
    if (skipped !== undefined) return { skipped };
    return {
      ratio,
      tokensPerSecond: Math.round(ours.bestTokensPerSecond),
      against: Math.round(theirs.bestTokensPerSecond),
      peakRssBytes: ours.peakRssBytes,
      peerPeakRssBytes: theirs.peakRssBytes,
    };
  },
});

export const rows = [
  product('NF4', 'exact', 1, 1),
  product('NF4', 'int16', 1, 2),
  product('NF4', 'int8', 1, 2.5),
  product('NF4', 'exact', 2, 1),
  product('NF4', 'int16', 2, 2.5),
  product('NF4', 'int8', 2, 4),
  product('int3', 'exact', 1, 1),
  product('int4', 'exact', 1, 1.1),
  product('int4', 'int8', 1, 2.2),
  product('Q4_K', 'exact', 1, 1),
  product('Q4_K', 'int8', 1, 1.8),
  cached,
  tokens('int16', 1.05),
  tokens('int8', 1.15),
  againstLlamaCpp('exact', 0.3),
  againstLlamaCpp('int8', 0.6),
];
