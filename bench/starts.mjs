/**
 * What a quantized model is before training, by how its adapter starts: perplexity on text that it was not trained on.
 *   node bench/starts.mjs [folder] [--tokens 8192] [--rank 16] [--formats nf4,3,2] [--budgets 3,3.625,4.625]
 * Run `pnpm build` before.
 */
import { parseArgs } from 'node:util';
import { adapt, evaluateText, init, load, loftq, lora, lqLora, nf4, olora, pissa, quantize, rtn } from '../packages/niwaki/dist/index.js';
import { keptOut } from '../examples/pretrain/corpus.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tokens: { type: 'string', default: '8192' },
    rank: { type: 'string', default: '16' },
    formats: { type: 'string', default: 'nf4,3,2' },
    budgets: { type: 'string', default: '3,3.625,4.625' },
  },
});
const source = positionals[0] ?? new URL('../packages/niwaki/models/niwaki-tiny', import.meta.url).pathname;
const rank = Number(values.rank);

await init({ device: 'wasm' });

async function measure(name, change) {
  const { model, tokenizer } = await load(source);
  const started = performance.now();
  await change(model);
  const seconds = (performance.now() - started) / 1000;
  const text = keptOut.filter((_, i) => i % 4 === 1).join('\n\n');
  const { perplexity } = await evaluateText(model, tokenizer, text, { maxTokens: Number(values.tokens), context: 256, batchSize: 4 });
  model.dispose();
  console.log(`${name.padEnd(34)} ${perplexity.toFixed(3).padStart(10)}  ${seconds.toFixed(1)} s`);
}

const start = (initializer) => (model) => adapt(model, lora({ rank, alpha: rank, init: initializer }), { at: 'all-linear' });

await measure('f32', async () => {});
const listed = (text) => text.split(',').filter((part) => part !== '');
for (const name of listed(values.formats)) {
  const quantizer = name === 'nf4' ? nf4() : rtn({ bits: Number(name), groupSize: 64 });
  await measure(`${name}`, (model) => quantize(model, quantizer));
  await measure(`${name}, OLoRA`, start(olora({ quantizer })));
  await measure(`${name}, PiSSA`, start(pissa({ quantizer })));
  await measure(`${name}, LoftQ`, start(loftq({ quantizer })));
  await measure(`${name}, LoftQ, 5 rounds`, start(loftq({ quantizer, iterations: 5 })));
  await measure(`${name}, LQ-LoRA`, start(lqLora({ quantizers: [quantizer] })));
}
const quantizers = [2, 3, 4, 8].map((bits) => rtn({ bits, groupSize: 64 }));
for (const bits of listed(values.budgets).map(Number)) {
  let chosen = '';
  const onAllocation = (report) => (chosen = report.bits.toFixed(2));
  await measure(`LQ-LoRA in a budget of ${bits} bits`, (model) => start(lqLora({ quantizers, bits, onAllocation }))(model));
  console.log(`  of which ${chosen} are used`);
}
