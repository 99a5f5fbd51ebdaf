import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openRows } from '../../bench/results.mjs';
import { pageOf, storedRuns } from '../../scripts/quality-table.mjs';

const row = (name: string, perplexity: number, { date = '2026-01-31', bitsAnEntry = 3.625 } = {}) => ({
  name,
  perplexity,
  bitsAnEntry,
  date,
});
const about = { model: 'a model', tokens: 16384, context: 256, calibrationTokens: 8192, machine: 'A machine' };
const quantization = (...rows: unknown[]) => ({ ...about, measures: 'quantization', groupSize: 64, rows: [row('f32', 20), ...rows] });
const pruning = (...rows: unknown[]) => ({ ...about, measures: 'pruning', rows: [row('as it is', 20), ...rows] });

it('tells rows by method and amount, under what they were measured, and lists what was not', () => {
  const page = pageOf([
    quantization(row('rtn 3 bits', 22.054), row('gptq 3 bits, mse', 21.5, { date: '2026-02-01' })),
    pruning(
      row('wanda 50%', 21.6),
      row('wanda 2:4', 23),
      row('wanda 4:8, packed', 22, { bitsAnEntry: 17.5 }),
      row('wanda 2:4, packed', 23, { bitsAnEntry: 17 }),
    ),
  ]);
  expect(page).toContain('16,384 tokens in windows of 256, groups of 64; calibrated with 8,192 tokens');
  expect(page).toContain('A machine, 2026-01-31 to 2026-02-01.');
  expect(page).toContain('| nearest rounding |  | 22.05 |  | 3.63 |');
  expect(page).toContain('| GPTQ, `mse` |  | 21.50 |  | 3.63 |');
  expect(page).toContain('| [Wanda](../methods/wanda) | 21.60 |  |  |  | 23.00 |  | 3.63 |');
  expect(page).toContain('| Wanda, stored packed |  |  |  | 22.00 | 23.00 |  | 17.50 / 17.00 |');
  expect(page).not.toMatch(/^\| \[CBQ\]/m);
  expect(page).toMatch(/^Not measured: .*nearest rounding \(4 bits, 2 bits\).*; CBQ \(4 bits, 3 bits, 2 bits\)/m);
});

it('says of each finding of a paper whether it holds, and never of one that was not measured', () => {
  const finding = 'GPTQ loses less than nearest rounding at 3 bits | 2210.17323 |';
  const page = (gptq: number) => pageOf([quantization(row('rtn 3 bits', 22), row('gptq 3 bits', gptq))]);
  expect(page(21)).toContain(`${finding} +1.00, +2.00 | yes |`);
  expect(page(23)).toContain(`${finding} +3.00, +2.00 | **no** |`);
  expect(page(23)).toContain('- *GPTQ loses less than nearest rounding at 3 bits*: ');
  expect(pageOf([quantization(row('gptq 3 bits', 21))])).toContain(`${finding}  | not measured |`);
  // 20 + 1.6 is less than 20 + 3, and not less than half of the way.
  const pruned = pageOf([pruning(row('magnitude 50%, layer', 23), row('wanda 50%', 21.6))]);
  expect(pruned).toContain('| Wanda loses less than magnitude at 50% | 2306.11695 | +1.60, +3.00 | yes |');
  expect(pruned).toContain('| Wanda loses less than half of what magnitude does at 50% | 2306.11695 | +1.60, +3.00 | **no** |');
});

it('refuses rows that it has no place for, and runs without the model as it was', () => {
  expect(() => pageOf([quantization(row('rtn 5 bits', 20))])).toThrow("'rtn 5 bits'");
  expect(() => pageOf([{ ...quantization(), rows: [row('rtn 3 bits', 22)] }])).toThrow("'f32' is missing");
});

it('goes on with rows measured under the same conditions, and refuses others', () => {
  const folder = mkdtempSync(join(tmpdir(), 'niwaki-results-'));
  try {
    const file = join(folder, 'runs', 'quality.json');
    openRows(file, { tokens: 64 }).add({ name: 'f32', perplexity: 20 });
    const later = openRows(file, { tokens: 64 });
    expect(later.has('f32')).toBe(true);
    expect(later.has('rtn 3 bits')).toBe(false);
    later.add({ name: 'rtn 3 bits', perplexity: 21 });
    expect(JSON.parse(readFileSync(file, 'utf8')).rows.map(({ name }: { name: string }) => name)).toEqual(['f32', 'rtn 3 bits']);
    expect(() => openRows(file, { tokens: 128 })).toThrow('measured with tokens 64, not 128');
  } finally {
    rmSync(folder, { recursive: true });
  }
});

it('stands in the docs as it is generated from the stored runs', () => {
  const page = readFileSync(new URL('../generated/quality.md', import.meta.url), 'utf8');
  expect(page, 'out of date: node scripts/quality-table.mjs').toBe(pageOf(storedRuns()));
});
