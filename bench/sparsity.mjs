/**
 * What pruning costs a real model: perplexity on text that it was not trained on, by method and sparsity.
 *   node bench/sparsity.mjs [folder] [--tokens 8192] [--sparsity 0.5,0.6,0.7] [--groups 2:4,4:8,1:4] [--calibrate 32]
 *     [--row 'wanda 50%' …] [--into FILE] [--json]
 * Calibration sees other text than evaluation. Run `pnpm build` before.
 * With --row only the rows so named are measured; with --into those that FILE does not hold yet, each added at once.
 */
import { basename } from 'node:path';
import { parseArgs } from 'node:util';
import {
  disposeBatch,
  dsnot,
  evaluateText,
  init,
  load,
  magnitude,
  prune,
  sparsegpt,
  tokenBatch,
  wanda,
} from '../packages/niwaki/dist/index.js';
import { keptOut, training } from '../examples/pretrain/corpus.mjs';
import { openRows } from './results.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tokens: { type: 'string', default: '8192' },
    sparsity: { type: 'string', default: '0.5,0.6,0.7' },
    groups: { type: 'string', default: '2:4,4:8,1:4' },
    calibrate: { type: 'string', default: '32' },
    row: { type: 'string', multiple: true },
    into: { type: 'string' },
    json: { type: 'boolean', default: false },
  },
});
const source = positionals[0] ?? new URL('../packages/niwaki/models/niwaki-tiny', import.meta.url).pathname;
const maxTokens = Number(values.tokens);
const context = 256;
const windows = Number(values.calibrate);

await init({ device: 'wasm' });
const calibrationTokens = windows * context;
const results = openRows(values.into, { measures: 'pruning', model: basename(source), tokens: maxTokens, context, calibrationTokens });

/** The model anew, pruned by `method`, and its score. */
async function measure(name, method) {
  if (results.has(name) || !(values.row?.includes(name) ?? true)) return;
  const { model, tokenizer } = await load(source);
  const started = performance.now();
  const row = { name, sparsity: 0 };
  if (method !== undefined) {
    const batches = method.kind === 'magnitude' ? [] : calibration(model, tokenizer);
    const { bytes, sites, sparsity } = await prune(model, method, batches.length > 0 ? { calibrate: { batches } } : {});
    batches.forEach(disposeBatch);
    const entries = model.sites([...sites]).reduce((sum, { weight }) => sum + weight.shape[0] * weight.shape[1], 0);
    Object.assign(row, { sparsity, bitsAnEntry: (8 * bytes) / entries });
  }
  row.seconds = (performance.now() - started) / 1000;
  // Whole speeches from several times, as many as it takes.
  const text = keptOut.filter((_, i) => i % 4 === 1).join('\n\n');
  const scoring = performance.now();
  const { perplexity, nll } = await evaluateText(model, tokenizer, text, { maxTokens, context, batchSize: 4 });
  Object.assign(row, { perplexity, nll, scoreSeconds: (performance.now() - scoring) / 1000 });
  model.dispose();
  if (!values.json) {
    const part = `${(100 * row.sparsity).toFixed(1)}%`.padStart(6);
    const bits = (row.bitsAnEntry ?? 0).toFixed(2).padStart(6);
    console.log(
      `${name.padEnd(36)} ${part} ${bits} bits ${perplexity.toFixed(3).padStart(10)}  ${row.seconds.toFixed(1)} s, scored in ${row.scoreSeconds.toFixed(1)} s`,
    );
  }
  results.add(row);
}

/** Windows of 256 tokens, each from a speech of its own. */
function calibration({ info }, tokenizer) {
  return Array.from({ length: windows }, (_, i) => {
    const speech = training[Math.floor((i * training.length) / windows)];
    const ids = [...tokenizer.encode(speech.slice(0, 12 * context))].slice(0, context);
    return tokenBatch([ids], { vocabularySize: info.vocabularySize });
  });
}

const list = (text) => text.split(',').filter((part) => part !== '');
await measure('as it is');
for (const sparsity of list(values.sparsity).map(Number)) {
  const part = `${Math.round(100 * sparsity)}%`;
  await measure(`magnitude ${part}, layer`, magnitude({ sparsity }));
  await measure(`magnitude ${part}, row`, magnitude({ sparsity, scope: 'row' }));
  await measure(`magnitude ${part}, global`, magnitude({ sparsity, scope: 'global' }));
  await measure(`wanda ${part}`, wanda({ sparsity }));
  await measure(`dsnot over magnitude ${part}`, dsnot({ initial: magnitude({ sparsity }) }));
  await measure(`dsnot over wanda ${part}`, dsnot({ initial: wanda({ sparsity }) }));
  await measure(`dsnot over wanda ${part}, all`, dsnot({ initial: wanda({ sparsity }), refine: 'all' }));
  await measure(`sparsegpt ${part}`, sparsegpt({ sparsity }));
}
for (const groups of list(values.groups)) {
  const [n, m] = groups.split(':').map(Number);
  await measure(`magnitude ${groups}`, magnitude({ n, m }));
  await measure(`wanda ${groups}`, wanda({ n, m }));
  await measure(`wanda ${groups}, packed`, wanda({ n, m, store: 'n-of-m' }));
  await measure(`dsnot over wanda ${groups}`, dsnot({ initial: wanda({ n, m }) }));
  await measure(`sparsegpt ${groups}`, sparsegpt({ n, m }));
}
if (values.json) console.log(JSON.stringify(results.rows, undefined, 2));
