import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { statusOf } from '../../bench/judge.mjs';
import { pageOf } from '../../bench/table.mjs';

const row = { name: 'a product', ratio: 2.5, floor: 2, unit: "tfjs's speed", device: 'wasm', threads: 2 };

it('tells each claim with its floor, and marks one that is below', () => {
  const page = pageOf([[row, { ...row, name: 'another', ratio: 1.5 }]], { machine: 'A machine', date: '2026-01-31' });
  expect(page).toContain('A machine, 2026-01-31.');
  expect(page).toContain("| a product | 2.5 | 2 | tfjs's speed | wasm | 2 |");
  expect(page).toContain('| another | **below** 1.5 | 2 |');
  expect(page).not.toContain('Whole processes');
});

it('fails a run for one ratio below its floor or that is no number, not for what was not measured', () => {
  const { ratio: _, ...unmeasured } = row;
  expect(statusOf([row, { ...row, ratio: 2 }, { ...unmeasured, skipped: 'no peer' }])).toBe(0);
  expect(statusOf([row, { ...row, ratio: 1.99 }])).toBe(1);
  expect(statusOf([{ ...row, ratio: NaN }])).toBe(1);
});

it('is run by a command: before a script pnpm writes to the same stdout', () => {
  const read = (path: string): { scripts?: object; bin?: object } =>
    JSON.parse(readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8')) as object;
  expect(read('package.json').scripts).not.toHaveProperty('bench');
  expect(read('bench/package.json').bin).toHaveProperty('bench');
});

it('lists jobs with what they took, and says what was not measured and why, without paths of the machine', () => {
  const job = {
    job: 'lora-step',
    base: 'nf4',
    batch: 4,
    length: 128,
    tokensPerSecond: 99.95,
    bestTokensPerSecond: 101,
    device: 'wasm',
    peakRssBytes: 5e8,
  };
  const roomy = { ...job, memoryBudget: 4e9 };
  const selective = { ...job, recompute: 'selective' };
  const skipped = {
    name: 'a peer',
    floor: 1,
    unit: 'x',
    device: 'wasm',
    threads: 2,
    skipped: 'python3 /home/me/bench/peers/torch_lora.py: cannot import torch',
  };
  const page = pageOf([[row, skipped], job, roomy, selective], { machine: 'A machine', date: '2026-01-31' });
  expect(page).toContain('| lora-step, batch 4 of 128 tokens | nf4 | – | the least: every block twice | 100.0 | 101.0 | 500 MB | wasm |');
  expect(page).toContain('| lora-step, batch 4 of 128 tokens | nf4 | – | 4000 MB | 100.0 | 101.0 | 500 MB | wasm |');
  expect(page).toContain('| lora-step, batch 4 of 128 tokens | nf4 | – | norms and activations twice | 100.0 |');
  expect(page).toContain('- a peer: python3 torch_lora.py: cannot import torch');
});

it('stands in the docs as it was generated', () => {
  const page = readFileSync(new URL('../generated/bench.md', import.meta.url), 'utf8');
  expect(page).toMatch(/^<!-- Written by bench\/table\.mjs/);
  expect(page).toMatch(/\| wasm decode, NF4, int8 activations, 1 thread \| [\d.]+ \|/);
});
