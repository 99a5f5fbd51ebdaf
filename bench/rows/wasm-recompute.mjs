/** What a block saves for its backward pass, on the wasm device: bytes against time. */
import { init } from '../../packages/backend/dist/index.js';
import { createStep } from '../../packages/engine/dist/index.js';
import { createDraw, openMemoryLedger } from '../../packages/tensor/dist/index.js';
import { adamw, adapt, blockwiseBackprop, causalLM, disposeBatch, languageBatch, lora } from '../../packages/niwaki/dist/index.js';
import { config, ids, smollm2 } from '../jobs/smollm2.mjs';

const tokens = 256;
const rounds = 2;

/** Of each level the seconds of its best step and the most bytes of tensors in one; the levels take turns. */
async function levels() {
  await init({ device: 'wasm', threads: 1 });
  const ledger = openMemoryLedger();
  const model = await smollm2('f32');
  await adapt(model, lora({ rank: 8, alpha: 16 }), { at: 'all-linear', seed: 1 });
  const row = ids(tokens + 1);
  const batch = languageBatch([{ ids: row.slice(0, -1), targets: row.slice(1) }], { vocabularySize: config.vocab_size });
  const runs = ['full', 'selective', 'none'].map((recompute) => ({
    recompute,
    step: createStep({
      model,
      objective: causalLM(),
      optimizer: adamw({ learningRate: 2e-4 }),
      estimator: blockwiseBackprop({ recompute }),
    }),
    seconds: Infinity,
    bytes: 0,
  }));
  let attempt = 0;
  const run = async (of) => {
    ledger.resetPeak();
    const started = process.cpuUsage();
    await of.step.run({ batches: [batch], attempt, rate: 2e-4, progress: 0, draw: createDraw(1, attempt++) });
    const { user, system } = process.cpuUsage(started);
    return { seconds: (user + system) / 1e6, bytes: ledger.peak() };
  };
  // The first makes the optimizer's state: three of it are there in every later step.
  for (const of of runs) await run(of);
  for (let round = 0; round < rounds; round++) {
    for (const of of runs) {
      const { seconds, bytes } = await run(of);
      of.seconds = Math.min(of.seconds, seconds);
      of.bytes = Math.max(of.bytes, bytes);
    }
  }
  for (const { step } of runs) step.dispose();
  disposeBatch(batch);
  model.dispose();
  ledger.dispose();
  return Object.fromEntries(runs.map(({ recompute, seconds, bytes }) => [recompute, { seconds, bytes }]));
}

let measured;
const row = (what, floor, unit, ratioOf) => ({
  name: `wasm, LoRA of SmolLM2's shape, ${tokens} tokens, norms and activations again${what}`,
  floor,
  unit,
  device: 'wasm',
  threads: 1,
  measure: async () => {
    measured ??= await levels();
    return { ratio: ratioOf(measured), ...measured };
  },
});

export const rows = [
  row('', 1.1, 'the speed of computing blocks again', ({ full, selective }) => full.seconds / selective.seconds),
  row(
    ': bytes',
    1.45,
    'fewer saved than all that backward reads',
    ({ full, selective, none }) => (none.bytes - full.bytes) / (selective.bytes - full.bytes),
  ),
];
