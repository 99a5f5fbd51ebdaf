import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { page } from '../../scripts/gpu-table.mjs';

it('stands in the docs as it is generated from the stored runs', () => {
  const stored = readFileSync(new URL('../generated/gpu.md', import.meta.url), 'utf8');
  expect(stored, 'out of date: node scripts/gpu-table.mjs').toBe(page());
  expect(stored).toContain('| decode |');
});
