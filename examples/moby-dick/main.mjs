// QLoRA on the embedded model: niwaki-tiny, which knows the State of the Union, learns to sound like Moby Dick.
//   npm start            or, with your own numbers:   npm start -- --steps 300 --out ./my-adapter
import { parseArgs } from 'node:util';
import {
  adamw,
  adapt,
  cosine,
  evaluateText,
  generate,
  init,
  languageData,
  load,
  lora,
  nf4,
  packSamples,
  quantize,
  saveAdapter,
  tokenizeDocuments,
  train,
  weightBytes,
} from 'niwaki';
import { lastChapters, training } from './text.mjs';

const { values } = parseArgs({
  options: {
    steps: { type: 'string', default: '220' },
    out: { type: 'string', default: 'runs/moby-dick' },
    device: { type: 'string', default: 'wasm' },
  },
});
const steps = Number(values.steps);
const say = (line = '') => console.log(line);
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const started = performance.now();

const device = await init({ device: values.device });
say(`device: ${device.device}, ${device.threads} threads (${device.reason})`);

const { model, tokenizer } = await load('niwaki-tiny');
const linear = () => model.sites('all-linear').reduce((sum, site) => sum + weightBytes(site.weight), 0);
const before = linear();
await quantize(model, nf4({ doubleQuant: true }));
say(`niwaki-tiny: its ${model.sites('all-linear').length} linear maps went from ${megabytes(before)} to ${megabytes(linear())} in NF4`);

const prompt = 'The whale';
const perplexity = async () => (await evaluateText(model, tokenizer, lastChapters, { maxTokens: 8192, batchSize: 4 })).perplexity;
async function sample() {
  const ids = [];
  for await (const { id } of generate(model, tokenizer.encode(prompt), { maxNewTokens: 60, temperature: 0.8, topP: 0.95, seed: 7 }))
    ids.push(id);
  return prompt + tokenizer.decode(ids, { skipSpecialTokens: true });
}
const first = await perplexity();
say(`\nbefore: perplexity ${first.toFixed(1)} on the novel's last chapters`);
say(`  ${await sample()}\n`);

const adapter = await adapt(model, lora({ rank: 16, alpha: 32 }), { at: 'all-linear' });
const samples = tokenizeDocuments(
  training.map((text) => ({ text })),
  tokenizer,
);
const data = languageData(packSamples(samples, { context: 256 }).rows, { vocabularySize: model.info.vocabularySize });
const run = train(model, {
  data,
  optimizer: adamw({ learningRate: 4e-3, weightDecay: 0 }),
  schedule: cosine({ learningRate: 4e-3, warmup: 10, floor: 0.1 }),
  steps,
  batchSize: 4,
  clip: 1,
});
for await (const { kind, step, loss, tokensPerSecond, etaSeconds, memory } of run) {
  if (kind !== 'step' || (step % 10 !== 0 && step !== 1)) continue;
  const bytes = `base ${megabytes(memory.base)}, adapter ${megabytes(memory.adapter)}, optimizer ${megabytes(memory.optimizer)}, step ${megabytes(memory.activations)}`;
  say(
    `step ${String(step).padStart(3)}/${steps}  loss ${loss.toFixed(3)}  ${Math.round(tokensPerSecond)} tokens/s  ${Math.ceil(etaSeconds)} s left  ${bytes}`,
  );
}

const last = await perplexity();
say(`\nafter: perplexity ${last.toFixed(1)}, ${((1 - last / first) * 100).toFixed(0)}% lower`);
say(`  ${await sample()}\n`);
await saveAdapter(adapter, values.out, { tokenizer });
say(`The adapter is in ${values.out}, as PEFT writes it; ${((performance.now() - started) / 1000).toFixed(0)} s in all. Try next:`);
say(`  npm run niwaki -- generate --model niwaki-tiny --adapter ${values.out} --prompt "The whale"`);
say('  npm run niwaki -- finetune --model YOUR.gguf --data YOUR.jsonl --out my-adapter');
say('  npm run docs        # the same, in your browser');
