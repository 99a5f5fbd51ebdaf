/**
 * Measures each claim of speed against what a user would have without it, in one process, turn by turn.
 *   node bench/run.mjs [name] [--json]
 * A row: { name, ratio, floor, unit, device, threads }; the exit status is 1 where a ratio is below its floor. A row whose
 * peer is not on this machine says so and counts as neither.
 *
 * A job is a process of its own, measured whole, which a peer's can be put beside:
 *   node bench/run.mjs lora-step [--batch 1] [--length 256] [--steps 5] [--threads 2] [--device wasm|webgpu] [--base f32|nf4|q4_1] [--rank 8] [--memory-budget bytes] [--json]
 *   node bench/run.mjs decode [--length 16] [--steps 64] [--threads 2] [--device wasm|webgpu] [--base q4_1] [--json]
 * `pnpm --silent bench …` builds first; without --silent pnpm itself writes to stdout. bench/table.mjs makes a page of results.
 */
import { existsSync, readdirSync } from 'node:fs';
import { parseArgs } from 'node:util';

const json = process.argv.includes('--json');
const wanted = process.argv.slice(2).find((argument) => !argument.startsWith('--'));

const job = new URL(`jobs/${wanted}.mjs`, import.meta.url);
if (wanted !== undefined && existsSync(job)) {
  const { options, run } = await import(job.href);
  const { values } = parseArgs({ allowPositionals: true, options: { ...options, json: { type: 'boolean', default: false } } });
  const result = await run(values);
  console.log(json ? JSON.stringify(result, undefined, 2) : result);
  process.exit(0);
}

const results = [];
for (const file of readdirSync(new URL('rows', import.meta.url)).sort()) {
  const { rows } = await import(new URL(`rows/${file}`, import.meta.url).href);
  for (const row of rows) {
    if (wanted !== undefined && !row.name.includes(wanted)) continue;
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
        `${result.ratio < result.floor ? '✗' : '✓'} ${result.name.padEnd(44)} ${String(result.ratio).padStart(7)} × ${result.unit} (floor ${result.floor})`,
      );
  }
}
if (json) console.log(JSON.stringify(results, undefined, 2));
process.exit(results.some(({ ratio, floor }) => ratio < floor) ? 1 : 0);
