/**
 * Measures each claim of speed against what a user would have without it, in one process, turn by turn.
 *   node bench/run.mjs [name] [--json]
 * A row: { name, ratio, floor, unit, device, threads }; the exit status is 1 where a ratio is below its floor. A row whose
 * peer is not on this machine says so and counts as neither.
 *
 * A job is a process of its own, measured whole, which a peer's can be put beside:
 *   node bench/run.mjs lora-step [--batch 1] [--length 256] [--steps 5] [--threads 2] [--device wasm|webgpu] [--base f32|nf4|q4_1] [--rank 8] [--recompute full|selective|none] [--memory-budget bytes] [--json]
 *   node bench/run.mjs decode [--length 16] [--steps 64] [--threads 2] [--device wasm|webgpu] [--base q4_1|nf4|f32] [--activations exact|int16|int8] [--json]
 * `pnpm bench …` builds first, and is the same. bench/table.mjs makes a page of results.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { FlagError } from './jobs/flags.mjs';
import { holds, statusOf } from './judge.mjs';

const wanted = process.argv.slice(2).find((argument) => !argument.startsWith('-'));
const job = new URL(`jobs/${wanted}.mjs`, import.meta.url);
const { options = {}, run } = wanted !== undefined && existsSync(job) ? await import(job.href) : {};
const { json, help, ...values } = flags({ ...options, json: { type: 'boolean', default: false }, help: { type: 'boolean', short: 'h' } });
if (help) {
  console.log(
    readFileSync(import.meta.filename, 'utf8')
      .match(/^ \* ?.*$/gm)
      .map((line) => line.slice(3))
      .slice(0, -1)
      .join('\n'),
  );
  process.exit(0);
}
if (run !== undefined) {
  try {
    const result = await run(values);
    console.log(json ? JSON.stringify(result, undefined, 2) : result);
  } catch (error) {
    if (!(error instanceof FlagError)) throw error;
    console.error(error.message);
    process.exit(2);
  }
  process.exit(0);
}

/** @returns the values of the flags; says which are known and leaves where one is not */
function flags(known) {
  try {
    return parseArgs({ allowPositionals: true, options: known }).values;
  } catch (error) {
    console.error(
      `${error.message}\nFlags: ${Object.keys(known)
        .map((name) => `--${name}`)
        .join(' ')}`,
    );
    process.exit(2);
  }
}

const files = readdirSync(new URL('rows', import.meta.url)).sort();
const sets = [];
for (const file of files) sets.push((await import(new URL(`rows/${file}`, import.meta.url).href)).rows);
const chosen = sets.flat().filter(({ name }) => wanted === undefined || name.includes(wanted));
if (chosen.length === 0) {
  console.error(
    `no job and no row is called '${wanted}'. Rows:\n${sets
      .flat()
      .map(({ name }) => `  ${name}`)
      .join('\n')}`,
  );
  process.exit(2);
}

const results = [];
for (const row of chosen) {
  const { measure, ...claim } = row;
  const { ratio, ...measured } = await measure();
  if (ratio === undefined) {
    results.push({ ...claim, ...measured });
    console.error(`– ${claim.name}: not measured, ${measured.skipped}`);
    continue;
  }
  const result = { ...claim, ...measured, ratio: Number(ratio.toFixed(2)) };
  results.push(result);
  if (!json)
    console.log(
      `${holds(result) ? '✓' : '✗'} ${result.name.padEnd(44)} ${String(result.ratio).padStart(7)} × ${result.unit} (floor ${result.floor})`,
    );
}
if (json) console.log(JSON.stringify(results, undefined, 2));
process.exit(statusOf(results));
