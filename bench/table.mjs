/**
 * Writes docs/generated/bench.md from what bench/run.mjs measured:
 *   pnpm bench --json > runs/bench.json; pnpm bench decode --json > runs/decode.json
 *   node bench/table.mjs runs/bench.json runs/decode.json … [--machine "name"]
 * The date is that of the newest file; the machine is this one where none is named.
 */
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { cpus, type } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { holds } from './judge.mjs';

const table = (head, rows) =>
  [`| ${head.join(' | ')} |`, `|${head.map(() => '---').join('|')}|`, ...rows.map((row) => `| ${row.join(' | ')} |`)].join('\n');

const megabytes = (bytes) => (bytes === undefined ? '–' : `${Math.round(bytes / 1e6)} MB`);

const again = { full: 'the least: every block twice', selective: 'norms and activations twice', none: 'nothing twice' };

/** What a step of training may hold: within it blocks keep what their backward reads, and the others are computed again. */
const roomOf = ({ job, memoryBudget, recompute = 'full' }) =>
  job === 'decode' ? '–' : memoryBudget === undefined ? again[recompute] : megabytes(memoryBudget);

/**
 * The page.
 * @param runs what bench/run.mjs printed: arrays of rows, and objects of jobs
 */
export function pageOf(runs, { machine, date }) {
  const rows = runs.filter(Array.isArray).flat();
  const jobs = runs.filter((run) => !Array.isArray(run));
  const measured = rows.filter(({ ratio }) => ratio !== undefined);
  const skipped = rows.filter(({ ratio }) => ratio === undefined);
  const sections = [
    `<!-- Written by bench/table.mjs from runs of bench/run.mjs. Do not edit. -->
# Measured

${machine}, ${date}. A ratio compares two sides that ran in turn, each by its best turn, one thread by the
time that it computed; beside torch and llama.cpp whole processes, of three rounds the one in the middle. \`pnpm bench\` fails
where one is below its floor. [Your own machine](../guide/bench.md) takes a click.`,
    table(
      ['claim', 'ratio', 'floor', 'of', 'device', 'threads'],
      measured.map(({ name, ratio, floor, unit, device, threads }) => [
        name,
        `${holds({ ratio, floor }) ? '' : '**below** '}${ratio}`,
        floor,
        unit,
        device,
        threads,
      ]),
    ),
  ];
  if (jobs.length > 0) {
    const head = ['job', 'base', 'activations', 'of tensors at most', 'tokens/s', 'best', 'peak memory', 'device'];
    const lines = jobs.map((measured) => {
      const { job, base, batch, length, activations, tokensPerSecond, bestTokensPerSecond, peakRssBytes, device } = measured;
      return [
        batch === undefined ? job : `${job}, batch ${batch} of ${length} tokens`,
        base,
        activations ?? '–',
        roomOf(measured),
        tokensPerSecond.toFixed(1),
        bestTokensPerSecond.toFixed(1),
        megabytes(peakRssBytes),
        device,
      ];
    });
    sections.push(`## Whole processes\n\nA model of SmolLM2-135M's shape with random weights.\n\n${table(head, lines)}`);
  }
  if (skipped.length > 0) {
    const lines = skipped.map(({ name, skipped: why }) => `- ${name}: ${why.replaceAll(/\S+\//g, '')}`);
    sections.push(`## Not measured here\n\n${lines.join('\n')}`);
  }
  return `${sections.join('\n\n')}\n`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values, positionals } = parseArgs({ allowPositionals: true, options: { machine: { type: 'string' } } });
  if (positionals.length === 0) {
    console.error('usage: node bench/table.mjs RUN.json … [--machine "name"]');
    process.exit(2);
  }
  const runs = positionals.map((file) => JSON.parse(readFileSync(file, 'utf8')));
  const newest = Math.max(...positionals.map((file) => statSync(file).mtimeMs));
  const machine = values.machine ?? `${cpus()[0].model.trim()}, ${cpus().length} cores, ${type()}, Node ${process.versions.node}`;
  const page = new URL('../docs/generated/bench.md', import.meta.url);
  mkdirSync(new URL('.', page), { recursive: true });
  writeFileSync(page, pageOf(runs, { machine, date: new Date(newest).toISOString().slice(0, 10) }));
  console.log(`${fileURLToPath(page)}: ${runs.flat().length} results`);
}
