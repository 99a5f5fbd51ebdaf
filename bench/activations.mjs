/**
 * What rounded activations cost a real model: perplexity on text that it was not trained on, each token predicted by the
 * step of one row that generation takes.
 *   node bench/activations.mjs [model] [--quantize nf4] [--tokens 1024] [--json]
 * Run `pnpm build` before.
 */
import { parseArgs } from 'node:util';
import { createKeyValueCache } from '../packages/nn/dist/index.js';
import { activationModes, tensor2d } from '../packages/tensor/dist/index.js';
import { forward, init, load, recipeKit } from '../packages/niwaki/dist/index.js';
import { keptOut } from '../examples/pretrain/corpus.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    quantize: { type: 'string' },
    tokens: { type: 'string', default: '1024' },
    json: { type: 'boolean', default: false },
  },
});
const context = 256;

await init({ device: 'wasm' });
const { model, tokenizer } = await load(positionals[0] ?? 'niwaki-tiny');
if (values.quantize !== undefined) await recipeKit.quantize[values.quantize](model, {}, { at: 'all-linear', seed: 0 });
const text = keptOut.filter((_, i) => i % 4 === 1).join('\n\n');
const ids = [...tokenizer.encode(text.slice(0, 8 * Number(values.tokens)))].slice(0, Number(values.tokens));

/** Nats a token, in windows that start anew; a window's first tokens are read together, as a prompt is. */
async function nll(activations) {
  const read = 8;
  let [sum, count] = [0, 0];
  for (let from = 0; from + read < ids.length; from += context) {
    const window = ids.slice(from, from + context);
    const cache = createKeyValueCache();
    for (let at = read; at < window.length; at++) {
      const given = at === read ? window.slice(0, read) : [window[at - 1]];
      const tokenIds = tensor2d(given, [1, given.length], 'int32');
      const positions = given.map((_, i) => at - given.length + i);
      const logits = forward(model, { tokenIds, positions }, { session: { cache }, activations });
      const last = (await logits.data()).slice(-model.info.vocabularySize);
      tokenIds.dispose();
      logits.dispose();
      const most = last.reduce((a, b) => Math.max(a, b));
      sum += most + Math.log(last.reduce((total, logit) => total + Math.exp(logit - most), 0)) - last[window[at]];
      count++;
    }
    cache.dispose();
  }
  return { nll: sum / count, tokens: count };
}

const rows = [];
for (const activations of activationModes) {
  const measured = await nll(activations);
  const row = { activations, ...measured, perplexity: Math.exp(measured.nll), drift: Math.expm1(measured.nll - (rows[0] ?? measured).nll) };
  rows.push(row);
  if (!values.json) {
    const drift = `${row.drift < 0 ? '' : '+'}${(100 * row.drift).toFixed(3)}%`;
    console.log(`${activations.padEnd(8)} ${row.perplexity.toFixed(4).padStart(10)} ${drift.padStart(10)}  over ${row.tokens} tokens`);
  }
}
if (values.json) console.log(JSON.stringify(rows, undefined, 2));
process.exit(0);
