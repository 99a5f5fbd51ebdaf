// Writes docs/generated/gpu.md: what the kit of bench/gpu measured on graphics cards, from the stored runs in bench/results.
// `--check` writes nothing and fails where the page is another.
import { readdirSync, readFileSync } from 'node:fs';
import { isMain, writeOrCheck } from './generated-page.mjs';

const results = new URL('../bench/results/', import.meta.url);
const linesOf = (url) =>
  readFileSync(url, 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line));

const table = (head, rows) =>
  [`| ${head.join(' | ')} |`, `|${head.map(() => '---').join('|')}|`, ...rows.map((row) => `| ${row.join(' | ')} |`)].join('\n');

const kept = { full: '', selective: ', products kept', none: ', activations kept' };

function jobName({ job, batch, length, memoryBudget, recompute = memoryBudget === undefined ? 'full' : 'none', activations = 'exact' }) {
  if (batch === undefined) return activations === 'exact' ? job : `${job}, ${activations} activations`;
  return `${job}, batch ${batch} of ${length} tokens${kept[recompute]}`;
}

/** One card's part of the page. */
export function sectionOf(folder) {
  const { card, date, parity, since } = JSON.parse(readFileSync(new URL('about.json', folder), 'utf8'));
  const [peak, ...kernels] = linesOf(new URL('kernels.jsonl', folder));
  const jobs = ['jobs', 'torch'].flatMap((name) => linesOf(new URL(`${name}.jsonl`, folder)));
  const megabytes = (bytes) => (bytes === undefined ? '–' : `${Math.round(bytes / 1e6)} MB`);
  return `## ${card}, ${date}

Every GPU test of every package on the card: ${parity}. Multiply-adds in registers ran at ${peak.teraflops} TFLOP/s, a copy
at ${peak.gigabytesPerSecond} GB/s: the roofline of the kernels below.
${since === undefined ? '' : `\nChanged or added since, and not measured on this card yet: ${since}.\n`}
A model of SmolLM2-135M's shape with random weights, whole processes, Node against torch on the same card within minutes:

${table(
  ['job', 'base', 'tokens/s', 'best', 'tensors at the peak', 'by'],
  jobs.map((job) => [
    jobName(job),
    job.base,
    job.tokensPerSecond.toFixed(0),
    job.bestTokensPerSecond.toFixed(0),
    megabytes(job.peakTensorBytes),
    job.device.startsWith('torch') ? job.device.split(',')[0] : 'niwaki',
  ]),
)}

${table(
  ['kernel', 'µs', 'µs of the host', 'of the roofline', 'bound by'],
  kernels.map(({ name, microseconds, hostMicroseconds, ofRoofline, bound }) => [
    name,
    microseconds,
    hostMicroseconds,
    `${(100 * ofRoofline).toFixed(1)}%`,
    bound,
  ]),
)}`;
}

/** The page. */
export function page() {
  const folders = readdirSync(results)
    .filter((name) => name.startsWith('gpu-'))
    .sort();
  return `<!-- Written by scripts/gpu-table.mjs from the runs in bench/results. Do not edit. -->
# WebGPU on graphics cards

Dawn in Node, f32 throughout: WebGPU offers no matrix units, so that a card's tensor cores stand idle. One kernel at a time
in a long queue; small ones are bound by what a launch takes of the host.

Measure another card with the kit, which needs no network and no installation there:

\`\`\`sh
node bench/gpu/pack.mjs gpu-kit --with-node
bash gpu-kit/run.sh gpu-kit/results
\`\`\`

${folders.map((name) => sectionOf(new URL(`${name}/`, results))).join('\n\n')}
`;
}

if (isMain(import.meta.url)) writeOrCheck('gpu', page(), { script: import.meta.url, told: 'written' });
