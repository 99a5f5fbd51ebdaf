/**
 * Measures each claim of speed against what a user would have without it, in one process, turn by turn.
 *   node bench/run.mjs [name] [--json]
 * A row: { name, ratio, floor, unit, device, threads }; the exit status is 1 where a ratio is below its floor.
 */
import { readdirSync } from 'node:fs';

const json = process.argv.includes('--json');
const wanted = process.argv.slice(2).find((argument) => !argument.startsWith('--'));

const results = [];
for (const file of readdirSync(new URL('rows', import.meta.url)).sort()) {
  const { rows } = await import(new URL(`rows/${file}`, import.meta.url).href);
  for (const row of rows) {
    if (wanted !== undefined && !row.name.includes(wanted)) continue;
    const { measure, ...claim } = row;
    const { ratio, ...measured } = await measure();
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
