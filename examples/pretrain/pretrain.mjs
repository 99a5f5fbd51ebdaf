// Trains niwaki-tiny from nothing: a Llama of 2.76 M parameters on the State of the Union speeches.
//   node pretrain.mjs [--steps N] [--batch-size N] [--learning-rate X] [--threads N] [--seed N] [--out FOLDER] [--evaluate-only]
// Interrupt it and run it again: it goes on from its last checkpoint.
import { parseArgs } from 'node:util';
import {
  adamw,
  cosine,
  evaluateText,
  fullTapeBackprop,
  init,
  initializeModel,
  languageData,
  load,
  loadTokenizer,
  packSamples,
  saveModel,
  tokenizeDocuments,
  train,
} from 'niwaki';
import { keptOut, training } from './corpus.mjs';

const home = new URL('../../packages/niwaki/models/niwaki-tiny', import.meta.url).pathname;
const { values } = parseArgs({
  options: {
    steps: { type: 'string', default: '5500' }, // 5.6 M tokens, a little over two passes
    'batch-size': { type: 'string', default: '4' },
    'learning-rate': { type: 'string', default: '3e-3' },
    threads: { type: 'string', default: '2' },
    seed: { type: 'string', default: '1' },
    out: { type: 'string', default: home },
    checkpoints: { type: 'string', default: new URL('../../runs/pretrain', import.meta.url).pathname },
    'evaluate-only': { type: 'boolean', default: false },
  },
});
const options = Object.fromEntries(
  Object.entries(values).map(([name, value]) => [name, Number.isNaN(Number(value)) ? value : Number(value)]),
);
const context = 256;

const config = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  vocab_size: 2048,
  hidden_size: 192,
  intermediate_size: 512,
  num_hidden_layers: 6,
  num_attention_heads: 6,
  num_key_value_heads: 2,
  head_dim: 32,
  max_position_embeddings: 512,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  hidden_act: 'silu',
  initializer_range: 0.02,
  tie_word_embeddings: true,
  bos_token_id: null,
  eos_token_id: 0,
  torch_dtype: 'float16',
};

const device = await init({ device: 'wasm', threads: options.threads });
console.error(`${device.device}, ${device.threads} threads: ${device.reason}`);
const tokenizer = await loadTokenizer(home);

/** Bits per byte over the speeches that were kept out, each alone. */
async function score(model, speeches = keptOut) {
  let bits = 0;
  let bytes = 0;
  for (const speech of speeches) {
    const { tokens, nll, bitsPerByte } = await evaluateText(model, tokenizer, speech, { context, batchSize: 4 });
    const nats = tokens * nll;
    bits += nats / Math.LN2;
    bytes += nats / Math.LN2 / bitsPerByte;
  }
  return bits / bytes;
}

if (!options['evaluate-only']) {
  const samples = tokenizeDocuments(
    training.map((text) => ({ text })),
    tokenizer,
  );
  const { rows } = packSamples(samples, { context });
  const data = languageData(rows, { vocabularySize: config.vocab_size });
  console.error(`${rows.length} rows, ${data.tokens} tokens an epoch`);

  const model = await initializeModel(config, { seed: options.seed });
  const run = train(model, {
    data,
    optimizer: adamw({
      learningRate: options['learning-rate'],
      beta1: 0.9,
      beta2: 0.95,
      weightDecay: 0.1,
      groups: [{ roles: ['norm'], weightDecay: 0 }],
    }),
    schedule: cosine({ learningRate: options['learning-rate'], warmup: 100, floor: 0.1 }),
    steps: options.steps,
    batchSize: options['batch-size'],
    clip: 1,
    seed: options.seed,
    estimator: fullTapeBackprop(),
    evaluate: { every: 1000, run: async () => ({ bitsPerByte: await score(model, keptOut.slice(0, 4)) }) },
    checkpoint: { folder: options.checkpoints, every: 250, resume: true },
  });
  for await (const event of run) {
    if (event.kind === 'evaluation')
      console.error(`step ${event.step}: ${event.metrics.bitsPerByte.toFixed(4)} bits per byte on four kept-out speeches`);
    if (event.kind === 'resume') console.error(`going on from step ${event.step}`);
    if (event.kind !== 'step' || event.step % 50 !== 0) continue;
    const { step, steps, loss, gradNorm, learningRate, tokensPerSecond, etaSeconds } = event;
    console.error(
      `${step}/${steps} loss ${loss.toFixed(4)} norm ${gradNorm.toFixed(2)} rate ${learningRate.toExponential(2)} ${Math.round(tokensPerSecond)} tokens/s, ${Math.round(etaSeconds / 60)} min left`,
    );
  }
  await saveModel(model, options.out, { dtype: 'f16' });
  model.dispose();
}

const { model } = await load(options.out);
console.error(`${(await score(model)).toFixed(4)} bits per byte on the ${keptOut.length} speeches kept out, as stored`);
