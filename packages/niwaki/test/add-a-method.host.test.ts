import { readFile, rm, writeFile } from 'node:fs/promises';
import { expect, it } from 'vitest';
import { denseParameter, memory, tensor2d } from '@niwaki/tensor';
import { denseWeight, disposeWeight } from '@niwaki/weights';
import type { Method, Site } from '../src/index.ts';

// The worked example of docs/contributing/add-a-method.md, as it stands there, through the suites that it is listed for.

const page = await readFile(new URL('../../../docs/contributing/add-a-method.md', import.meta.url), 'utf8');

/** The block that begins with the name of a file. */
function blockOf(file: string): string {
  const found = [...page.matchAll(/```ts\n\/\/ (\S+)\n([^]*?)```/g)].find(([, name]) => name === file);
  if (found === undefined) throw new Error(`add-a-method.md has no block of ${file}`);
  return found[2]!;
}

const text = `
import { configContract } from '../../testing/src/config-contract.ts';
import { weightMethodContract } from '../../testing/src/weight-method-contract.ts';
${blockOf('packages/quant/src/twn.ts')}
const list = { ${blockOf('packages/quant/test/contract-list.ts')} };
for (const [name, method] of Object.entries(list)) weightMethodContract(name, method);
${blockOf('packages/quant/test/config.host.test.ts')}
`;
const file = new URL(`./add-a-method-block.${process.pid}.ts`, import.meta.url).pathname;
await writeFile(file, text);
const { twn } = (await import(/* @vite-ignore */ file).finally(() => rm(file, { force: true }))) as { twn: () => Method };

it('rounds a row as the paper does', async () => {
  const before = memory().numTensors;
  // The mean |w| is 1, the bound 0.7: 1, 2, -1.5 and 1.7 stay, and the mean of those is 1.55.
  const matrix = tensor2d([[1, -0.3, 2, -0.2, 0.6, -1.5, 0.7, 1.7]]);
  const weight = denseWeight(denseParameter('a.weight', matrix, { role: 'matrix' }));
  const made = await twn().make({ path: 'a', point: 'linear', inputId: 'a', weight } satisfies Site, {});
  const dense = made.weight!.dense();
  expect(Array.from(await dense.data())).toEqual([1.55, 0, 1.55, 0, 0, -1.55, 0, 1.55].map(Math.fround));
  dense.dispose();
  for (const used of [weight, made.weight!]) disposeWeight(used);
  expect(memory().numTensors).toBe(before);
});
