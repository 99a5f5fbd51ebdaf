/** Steps of LoRA on a frozen base, a whole process: { tokensPerSecond, peakRssBytes, … }. */
import { createStep } from '../../packages/engine/dist/index.js';
import { createDraw, openMemoryLedger } from '../../packages/tensor/dist/index.js';
import { adamw, adapt, blockwiseBackprop, causalLM, init, languageBatch, lora } from '../../packages/niwaki/dist/index.js';
import { counts, oneOf } from './flags.mjs';
import { bases, config, devices, ids, median, smollm2 } from './smollm2.mjs';

export const options = {
  batch: { type: 'string', default: '1' },
  length: { type: 'string', default: '256' },
  steps: { type: 'string', default: '5' },
  threads: { type: 'string', default: '2' },
  device: { type: 'string', default: 'wasm' },
  base: { type: 'string', default: 'f32' },
  rank: { type: 'string', default: '8' },
  /** What the backward of a block computes again; or, in its place, bytes of tensors that a step may take. */
  recompute: { type: 'string' },
  'memory-budget': { type: 'string' },
};

export async function run(values) {
  const [batch, length, steps, threads, rank] = counts(values, ['batch', 'length', 'steps', 'threads', 'rank']);
  const saves = {
    ...(values.recompute !== undefined && { recompute: oneOf(values, 'recompute', ['full', 'selective', 'none']) }),
    ...(values['memory-budget'] !== undefined && { memoryBudget: counts(values, ['memory-budget'])[0] }),
  };
  oneOf(values, 'device', devices);
  oneOf(values, 'base', bases);
  const { description } = await init({ device: values.device, threads, software: true });
  const ledger = openMemoryLedger();
  const model = await smollm2(values.base);
  await adapt(model, lora({ rank, alpha: 2 * rank }), { at: 'all-linear', seed: 1 });
  const rows = Array.from({ length: batch }, (_, row) => {
    const all = ids(length + 1, 1 + 7919 * row);
    return { ids: all.slice(0, -1), targets: all.slice(1) };
  });
  const window = languageBatch(rows, { vocabularySize: config.vocab_size });
  const optimizer = adamw({ learningRate: 2e-4 });
  const step = createStep({ model, objective: causalLM(), optimizer, estimator: blockwiseBackprop(saves) });
  const [seconds, cpuSeconds] = [[], []];
  ledger.resetPeak();
  // One more: the first compiles.
  for (let attempt = 0; attempt <= steps; attempt++) {
    const [started, cpu] = [performance.now(), process.cpuUsage()];
    await step.run({ batches: [window], attempt, rate: 2e-4, progress: 0, draw: createDraw(1, attempt) });
    if (attempt === 0) continue;
    const { user, system } = process.cpuUsage(cpu);
    seconds.push((performance.now() - started) / 1000);
    cpuSeconds.push((user + system) / 1e6);
  }
  const tokens = batch * length;
  return {
    job: 'lora-step',
    device: description,
    base: values.base,
    batch,
    length,
    rank,
    ...saves,
    tokensPerSecond: tokens / median(seconds),
    bestTokensPerSecond: tokens / Math.min(...seconds),
    secondsPerStep: seconds,
    // What remains comparable on a busy machine; threads that wait for work count.
    cpuSecondsPerStep: cpuSeconds,
    peakTensorBytes: ledger.peak(),
    peakRssBytes: process.resourceUsage().maxRSS * 1024,
  };
}
