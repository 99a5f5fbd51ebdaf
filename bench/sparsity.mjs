/**
 * What pruning costs a real model: perplexity on text that it was not trained on, by method and sparsity.
 *   node bench/sparsity.mjs [folder] [--tokens 8192] [--sparsity 0.5,0.6,0.7] [--groups 2:4,4:8,1:4] [--calibrate 32] [--json]
 * Calibration sees other text than evaluation. Run `pnpm build` before.
 */
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

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tokens: { type: 'string', default: '8192' },
    sparsity: { type: 'string', default: '0.5,0.6,0.7' },
    groups: { type: 'string', default: '2:4,4:8,1:4' },
    calibrate: { type: 'string', default: '32' },
    json: { type: 'boolean', default: false },
  },
});
const source = positionals[0] ?? new URL('../packages/niwaki/models/niwaki-tiny', import.meta.url).pathname;
const maxTokens = Number(values.tokens);
const context = 256;

await init({ device: 'wasm' });

/** The model anew, pruned by `method`, and its score. */
async function measure(name, method) {
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
  return row;
}

/** Windows of 256 tokens, each from a speech of its own. */
function calibration({ info }, tokenizer) {
  const count = Number(values.calibrate);
  return Array.from({ length: count }, (_, i) => {
    const speech = training[Math.floor((i * training.length) / count)];
    const ids = [...tokenizer.encode(speech.slice(0, 12 * context))].slice(0, context);
    return tokenBatch([ids], { vocabularySize: info.vocabularySize });
  });
}

const list = (text) => text.split(',').filter((part) => part !== '');
const rows = [await measure('as it is')];
for (const sparsity of list(values.sparsity).map(Number)) {
  rows.push(await measure('magnitude, layer', magnitude({ sparsity })));
  rows.push(await measure('magnitude, row', magnitude({ sparsity, scope: 'row' })));
  rows.push(await measure('magnitude, global', magnitude({ sparsity, scope: 'global' })));
  rows.push(await measure('wanda', wanda({ sparsity })));
  rows.push(await measure('dsnot over magnitude', dsnot({ initial: magnitude({ sparsity }) })));
  rows.push(await measure('dsnot over wanda', dsnot({ initial: wanda({ sparsity }) })));
  rows.push(await measure('dsnot over wanda, all', dsnot({ initial: wanda({ sparsity }), refine: 'all' })));
  rows.push(await measure('sparsegpt', sparsegpt({ sparsity })));
}
for (const groups of list(values.groups)) {
  const [n, m] = groups.split(':').map(Number);
  rows.push(await measure(`magnitude ${groups}`, magnitude({ n, m })));
  rows.push(await measure(`wanda ${groups}`, wanda({ n, m })));
  rows.push(await measure(`wanda ${groups}, packed`, wanda({ n, m, store: 'n-of-m' })));
  rows.push(await measure(`dsnot over wanda ${groups}`, dsnot({ initial: wanda({ n, m }) })));
  rows.push(await measure(`sparsegpt ${groups}`, sparsegpt({ n, m })));
}
if (values.json) console.log(JSON.stringify(rows, undefined, 2));
