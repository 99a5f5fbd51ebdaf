/**
 * What quantization costs a real model: perplexity on text that it was not trained on, by method and bits.
 *   node bench/quality.mjs [folder] [--tokens 8192] [--bits 4,3,2] [--group 64] [--methods rtn,gptq,awq,cbq] [--calibrate 32]
 *     [--row 'gptq 3 bits' …] [--into FILE] [--checkpoint FOLDER] [--json]
 * Calibration sees other text than evaluation. Run `pnpm build` before.
 * With --checkpoint a row that was stopped goes on at the window where it was.
 * With --row only the rows so named are measured; with --into those that FILE does not hold yet, each added at once.
 */
import { basename, join } from 'node:path';
import { parseArgs } from 'node:util';
import {
  activations,
  awq,
  calibrationFolder,
  cbq,
  disposeBatch,
  evaluateText,
  gptq,
  init,
  load,
  nf4,
  quantize,
  rtn,
  tokenBatch,
} from '../packages/niwaki/dist/index.js';
import { keptOut, training } from '../examples/pretrain/corpus.mjs';
import { openRows } from './results.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tokens: { type: 'string', default: '8192' },
    bits: { type: 'string', default: '4,3,2' },
    group: { type: 'string', default: '64' },
    methods: { type: 'string', default: 'rtn,gptq,awq,cbq' },
    calibrate: { type: 'string', default: '32' },
    row: { type: 'string', multiple: true },
    into: { type: 'string' },
    checkpoint: { type: 'string' },
    json: { type: 'boolean', default: false },
  },
});
const source = positionals[0] ?? new URL('../packages/niwaki/models/niwaki-tiny', import.meta.url).pathname;
const maxTokens = Number(values.tokens);
const groupSize = Number(values.group);
const context = 256;
const windows = Number(values.calibrate);
const wanted = new Set(values.methods.split(','));

await init({ device: 'wasm' });
const calibrationTokens = windows * context;
const results = openRows(values.into, {
  measures: 'quantization',
  model: basename(source),
  tokens: maxTokens,
  context,
  calibrationTokens,
  groupSize,
});

/** The model anew, changed by `method` and then by one that looks at no text, and its score. */
async function measure(name, method, after) {
  if (results.has(name) || !(values.row?.includes(name) ?? true)) return;
  const { model, tokenizer } = await load(source);
  const started = performance.now();
  let bitsAnEntry = 32;
  if (method !== undefined) {
    const batches = calibrated.has(method.kind) ? calibration(model, tokenizer) : [];
    const calibrate = { batches, ...checkpointOf(name) };
    const { bytes, sites } = await quantize(model, method, batches.length > 0 ? { calibrate } : {});
    batches.forEach(disposeBatch);
    const entries = model.sites([...sites]).reduce((sum, { weight }) => sum + weight.shape[0] * weight.shape[1], 0);
    bitsAnEntry = (8 * bytes) / entries;
  }
  if (after !== undefined) await quantize(model, after);
  const seconds = (performance.now() - started) / 1000;
  // Whole speeches from several times, as many as it takes.
  const text = keptOut.filter((_, i) => i % 4 === 1).join('\n\n');
  const { perplexity, nll } = await evaluateText(model, tokenizer, text, { maxTokens, context, batchSize: 4 });
  model.dispose();
  const row = { name, bitsAnEntry: Number(bitsAnEntry.toFixed(3)), nll, perplexity, seconds: Number(seconds.toFixed(1)) };
  if (!values.json)
    console.log(
      `${name.padEnd(38)} ${row.bitsAnEntry.toFixed(2).padStart(6)} bits  ${perplexity.toFixed(3).padStart(12)}  ${row.seconds} s`,
    );
  results.add(row);
}

const calibrated = new Set(['gptq', 'awq', 'cbq']);

const checkpointOf = (name) =>
  values.checkpoint && { checkpoint: calibrationFolder(join(values.checkpoint, name.replaceAll(/\W+/g, '-')), { resume: true }) };

/** Windows of 256 tokens, each from a speech of its own. */
function calibration({ info }, tokenizer) {
  return Array.from({ length: windows }, (_, i) => {
    const speech = training[Math.floor((i * training.length) / windows)];
    const ids = [...tokenizer.encode(speech.slice(0, 12 * context))].slice(0, context);
    return tokenBatch([ids], { vocabularySize: info.vocabularySize });
  });
}

await measure('f32');
await measure('nf4', nf4());
for (const bits of values.bits.split(',').map(Number)) {
  const options = { bits, groupSize };
  const methods = [
    [`rtn ${bits} bits, symmetric`, rtn({ ...options, symmetric: true })],
    [`rtn ${bits} bits`, rtn(options)],
    [`rtn ${bits} bits, mse`, rtn({ ...options, mse: true })],
    [`gptq ${bits} bits`, gptq(options)],
    [`gptq ${bits} bits, act-order`, gptq({ ...options, actOrder: true })],
    [`gptq ${bits} bits, mse`, gptq({ ...options, mse: true })],
    [`gptq ${bits} bits, mse, static, act-order`, gptq({ ...options, mse: true, staticGroups: true, actOrder: true })],
    [`awq ${bits} bits`, awq(options)],
    [`cbq ${bits} bits`, cbq(options)],
    [`cbq ${bits} bits, window of 1`, cbq({ ...options, window: 1 })],
    [`cbq ${bits} bits, rank 5`, cbq({ ...options, rank: 5 })],
    ...(bits === 4 ? withActivations(options) : []),
  ];
  for (const [name, method, after] of methods) if (wanted.has(method.kind)) await measure(name, method, after);
}

/** What 4-bit weights multiply with is rounded too: per token, or per tensor where it says so. */
function withActivations(options) {
  const nearest = [8, 4].map((bits) => [`rtn 4 bits, mse, ${bits}-bit activations`, rtn({ ...options, mse: true }), activations({ bits })]);
  const fitted = [8, 4].map((bits) => [`cbq 4 bits, ${bits}-bit activations`, cbq({ ...options, activations: { bits } })]);
  return [
    ...nearest,
    ...fitted,
    ['cbq 4 bits, then 4-bit activations', cbq(options), activations({ bits: 4 })],
    ['cbq 4 bits, 4-bit activations per tensor', cbq({ ...options, activations: { bits: 4, per: 'tensor' } })],
  ];
}

if (values.json) console.log(JSON.stringify(results.rows, undefined, 2));
