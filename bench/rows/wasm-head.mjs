/** The loss of a language model's head and its gradients on the wasm device, in chunks of rows, against ops of their own. */
import { init } from '../../packages/backend/dist/index.js';
import {
  add,
  createDraw,
  crossEntropyGradOp,
  crossEntropyOp,
  denseParameter,
  dispose,
  fill,
  keep,
  matMul,
  openMemoryLedger,
  plainView,
  runOp,
  slice,
  tensor,
  tensor1d,
  tidy,
} from '../../packages/tensor/dist/index.js';
import { denseWeight } from '../../packages/weights/dist/index.js';
import { blockwiseBackprop, causalLM } from '../../packages/niwaki/dist/index.js';
import { against } from '../against.mjs';
import { config } from '../jobs/smollm2.mjs';

const { vocab_size: vocabulary, hidden_size: width } = config;
const tokens = 512;

const wave = (shape, step) =>
  tensor(
    Float32Array.from({ length: shape[0] * shape[1] }, (_, i) => 0.05 * Math.sin(step * i)),
    shape,
  );

/** The head of SmolLM2-135M alone: hidden states that take a gradient, and its matrix. */
function head(trains) {
  const hidden = denseParameter('hidden', wave([tokens, width], 0.37), { role: 'matrix', trainable: true });
  const matrix = denseParameter('head.weight', wave([vocabulary, width], 0.0071), { role: 'head', trainable: trains });
  const weight = denseWeight(matrix);
  const part = { sites: [], couplings: [] };
  const stages = [
    { ...part, path: 'rows', reads: [], writes: ['h'], parameters: () => [hidden], run: (_, call) => ({ h: call.value(hidden).clone() }) },
    {
      ...part,
      path: 'lm_head',
      reads: ['h'],
      writes: ['logits'],
      sites: [{ path: 'lm_head', point: 'head', weight, inputId: 'h' }],
      parameters: () => [matrix],
      run: ({ h }, call) => ({ logits: weight.apply(h, call) }),
    },
  ];
  const ids = Int32Array.from({ length: tokens }, (_, i) => (Math.imul(i + 1, 2654435761) >>> 0) % vocabulary);
  const index = Int32Array.from(ids, (_, i) => i);
  const batch = { tokenIds: tensor1d(ids, 'int32'), targetRows: tensor1d(index, 'int32'), targets: tensor1d(ids, 'int32') };
  return {
    model: { info: { vocabularySize: vocabulary }, stages: () => stages },
    hidden,
    matrix,
    batch,
    wrt: trains ? [hidden, matrix] : [hidden],
  };
}

async function ours({ model, batch, wrt }) {
  const found = [];
  const turn = {
    model,
    objective: causalLM(),
    batch,
    wrt: new Set(wrt),
    view: plainView,
    at: { attempt: 0, phaseStep: 0, micro: 0, pass: 0 },
    draw: createDraw(1, 0),
    scale: 1 / tokens,
  };
  const loss = await blockwiseBackprop().estimate(turn, { push: (_, { value }) => found.push(value) });
  dispose([loss, ...found]);
}

/** `chunk` rows at a time: logits, their gradient beside them, and where the matrix trains a sum, a term and the new sum. */
function theirs({ hidden, matrix, batch }, { chunk, trains }) {
  const [h, w] = [hidden.read(), matrix.read()];
  let total;
  for (let from = 0; from < tokens; from += chunk) {
    tidy(() => {
      const [x, targets] = [slice(h, [from, 0], [chunk, width]), slice(batch.targets, [from], [chunk])];
      const logits = matMul(x, w, false, true);
      const [, logSumExp] = runOp(crossEntropyOp, { logits, targets }, {});
      const dloss = fill([chunk], 1 / tokens);
      const [dlogits] = runOp(crossEntropyGradOp, { dloss, logits, targets, logSumExp }, { overwrite: false });
      matMul(dlogits, w);
      if (!trains) return;
      const term = matMul(dlogits, x, true, false);
      const before = total;
      total = keep(before === undefined ? term : add(before, term));
      before?.dispose();
    });
  }
  total?.dispose();
}

const measured = new Map();

/** Time and bytes of one run: whichever row asks first measures both. */
async function measure(trains, chunk) {
  const name = `${trains} ${chunk}`;
  if (measured.has(name)) return measured.get(name);
  const use = () => init({ device: 'wasm', threads: 1 });
  await use();
  const ledger = openMemoryLedger();
  const given = head(trains);
  const sides = { ours: () => ours(given), theirs: () => theirs(given, { chunk, trains }) };
  const bytes = {};
  for (const [side, run] of Object.entries(sides)) {
    const before = ledger.bytes();
    ledger.resetPeak();
    await run();
    bytes[side] = ledger.peak() - before;
  }
  const time = await against({ use, once: sides.ours }, { use, once: sides.theirs }, { turns: 5, threads: 1 });
  dispose(Object.values(given.batch));
  given.hidden.dispose();
  given.matrix.dispose();
  ledger.dispose();
  const result = { time, bytes: { ratio: bytes.theirs / bytes.ours, bytes: bytes.ours, againstBytes: bytes.theirs } };
  measured.set(name, result);
  return result;
}

const claim = (name, { trains, chunk }, floors, peer) => [
  {
    name,
    floor: floors.time,
    unit: `the speed of ${peer}`,
    device: 'wasm',
    threads: 1,
    measure: async () => (await measure(trains, chunk)).time,
  },
  {
    name: `${name}: bytes`,
    floor: floors.bytes,
    unit: `fewer at the peak than ${peer}`,
    device: 'wasm',
    threads: 1,
    measure: async () => (await measure(trains, chunk)).bytes,
  },
];

export const rows = [
  ...claim("SmolLM2's head, frozen, 512 rows", { trains: false, chunk: tokens }, { time: 0.8, bytes: 10 }, 'all logits at once'),
  ...claim(
    "SmolLM2's head, trained, 512 rows",
    { trains: true, chunk: tokens / 4 },
    { time: 0.9, bytes: 2 },
    'the same chunks, gradients beside',
  ),
];
