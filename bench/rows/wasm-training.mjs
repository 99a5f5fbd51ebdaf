/** Steps of training on the wasm device. */
import '@tensorflow/tfjs-backend-wasm';
import { setBackend } from '@tensorflow/tfjs-core';
import { init } from '../../packages/backend/dist/index.js';
import { createStep } from '../../packages/engine/dist/index.js';
import { createDraw } from '../../packages/tensor/dist/index.js';
import { adamw, causalLM, disposeBatch, initializeModel, languageBatch } from '../../packages/niwaki/dist/index.js';
import { ids } from '../jobs/smollm2.mjs';
import { here, jsonOf, middleRound } from '../processes.mjs';

const config = {
  model_type: 'llama',
  vocab_size: 1024,
  hidden_size: 256,
  intermediate_size: 704,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 4,
  max_position_embeddings: 512,
  rms_norm_eps: 1e-5,
  tie_word_embeddings: false,
};

/** Seconds of each of `turns` steps of 256 tokens; the embedding is frozen, since tfjs-wasm has no gradient for it. */
async function steps(use, turns) {
  await use();
  const model = await initializeModel(config, { seed: 1 });
  for (const [path, parameter] of model.parameters()) parameter.trainable = !path.includes('embed_tokens');
  const row = ids(257).map((id) => id % config.vocab_size);
  const batch = languageBatch([{ ids: row.slice(0, -1), targets: row.slice(1) }], { vocabularySize: config.vocab_size });
  const step = createStep({ model, objective: causalLM(), optimizer: adamw({ learningRate: 1e-3 }) });
  const seconds = [];
  for (let attempt = 0; attempt <= turns; attempt++) {
    const started = performance.now();
    await step.run({ batches: [batch], attempt, rate: 1e-3, progress: 0, draw: createDraw(1, attempt) });
    if (attempt > 0) seconds.push((performance.now() - started) / 1000);
  }
  step.dispose();
  disposeBatch(batch);
  model.dispose();
  return seconds;
}

/** The same model code by tfjs's own kernels: each op of ours is then its composition of theirs. */
const step = (threads, floor) => ({
  name: `wasm training step, 2 layers of 256, ${threads} thread${threads > 1 ? 's' : ''}`,
  floor,
  unit: "tfjs-wasm's speed",
  device: 'wasm',
  threads,
  measure: async () => {
    const best = { ours: Infinity, theirs: Infinity };
    for (let round = 0; round < 2; round++) {
      best.ours = Math.min(best.ours, ...(await steps(() => init({ device: 'wasm', threads }), 5)));
      best.theirs = Math.min(best.theirs, ...(await steps(() => setBackend('wasm'), 1)));
    }
    return { ratio: best.theirs / best.ours, milliseconds: Math.round(best.ours * 1000), against: Math.round(best.theirs * 1000) };
  },
});

/**
 * Whole processes, turn by turn: what a user gets and what it takes of the machine. Python is $PYTHON or python3.
 * @param of 'tokensPerSecond', ours over torch's, or 'bytes', the other way round
 */
const againstTorch = (flags, floor, { base = 'f32', more = [], peer = [], of = 'tokensPerSecond' } = {}) => ({
  name: `LoRA of SmolLM2's shape, ${flags.join(' ')}, base ${base}${peer.length > 0 ? ', recomputing' : ''}${of === 'bytes' ? ': bytes' : ''}`,
  floor,
  unit: of === 'bytes' ? "fewer at the peak of the process than torch's, f32" : "torch's tokens per second, f32",
  device: 'wasm',
  threads: 2,
  measure: async () => {
    const all = [...flags, '--threads', '2', '--steps', '3'];
    const { skipped, ratio, ours, theirs } = middleRound(
      {
        theirs: () => jsonOf(process.env.PYTHON ?? 'python3', [here('peers/torch_lora.py'), ...all, ...peer]),
        ours: () => jsonOf(process.execPath, [here('run.mjs'), 'lora-step', '--json', '--base', base, ...all, ...more]),
      },
      of === 'bytes'
        ? (own, other) => other.peakRssBytes / own.peakRssBytes
        : (own, other) => own.bestTokensPerSecond / other.bestTokensPerSecond,
    );
    if (skipped !== undefined) return { skipped };
    return {
      ratio,
      tokensPerSecond: Math.round(ours.bestTokensPerSecond),
      against: Math.round(theirs.bestTokensPerSecond),
      cpuSeconds: Math.min(...ours.cpuSecondsPerStep),
      peerCpuSeconds: Math.min(...theirs.cpuSecondsPerStep),
      peakRssBytes: ours.peakRssBytes,
      peerPeakRssBytes: theirs.peakRssBytes,
    };
  },
});

const whole = { more: ['--memory-budget', '4e9'] };

export const rows = [
  step(1, 15),
  step(2, 15),
  againstTorch(['--batch', '4', '--length', '128'], 0.7, whole),
  // Half the rows for the same packing of W.
  againstTorch(['--batch', '1', '--length', '256'], 0.6, whole),
  againstTorch(['--batch', '4', '--length', '128'], 0.5, { base: 'q4_1', peer: ['--checkpoint'] }),
  // At most 0.35 of torch's.
  againstTorch(['--batch', '4', '--length', '128'], 2.86, { base: 'nf4', of: 'bytes' }),
];
