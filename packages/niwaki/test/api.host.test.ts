import { beforeAll, expect, it } from 'vitest';
import * as niwaki from '../src/index.ts';
import { readGroups, type Exported, type Group } from './api.ts';

// The surface of niwaki, name by name, in docs/generated/api.md: what is added or taken away is seen in its diff.
// `node scripts/api-page.mjs` writes it.

let groups: readonly Group[];
let all: readonly Exported[];
beforeAll(() => {
  groups = readGroups(new URL('../src/index.ts', import.meta.url).pathname);
  all = groups.flatMap(({ exported }) => exported);
  // The compiler reads every package and tfjs's types: ten seconds of one core, more where others have it.
}, 240_000);

/** Who only uses one hands it on; its members' types are for its authors, in the package that it comes from. */
const nouns = new Set([
  'ActivationQuantizer',
  'Adapter',
  'AdapterFile',
  'AdapterMethod',
  'Batch',
  'Coupling',
  'Estimator',
  'Format',
  'Initializer',
  'Method',
  'Objective',
  'Parameter',
  'Participant',
  'PeftSet',
  'Pruner',
  'Session',
  'Stage',
  'Transform',
  'View',
  'WalkCheckpoint',
  'Weight',
]);

it('reads what is there: its values are those of the module', () => {
  const values = all.filter(({ kind }) => kind === 'value').map(({ name }) => name);
  expect([...values].sort()).toEqual(Object.keys(niwaki).sort());
});

it('has every type that what it exports mentions', () => {
  const names = new Set(all.map(({ name }) => name));
  expect([...nouns].filter((noun) => !names.has(noun))).toEqual([]);
  const missing = all
    .filter(({ name }) => !nouns.has(name))
    .flatMap(({ name, mentions }) => mentions.filter((other) => !names.has(other)).map((other) => `${other}, of ${name}`));
  expect(missing).toEqual([]);
});

it('has no type that nothing mentions', () => {
  const mentioned = new Set(all.flatMap(({ mentions }) => mentions));
  expect(all.filter(({ name, kind }) => kind === 'type' && !mentioned.has(name)).map(({ name }) => name)).toEqual([]);
});

/** Angle brackets outside of code would be elements of the page. */
const prose = (text: string): string =>
  text
    .split('`')
    .map((part, i) => (i % 2 === 0 ? part.replaceAll('<', '&lt;').replaceAll('*', '\\*') : part))
    .join('`');

const section = ({ title, exported }: Group): string => {
  const values = exported.filter(({ kind }) => kind === 'value');
  const types = exported.filter(({ kind }) => kind === 'type');
  const [told, bare] = [types.filter(({ sentence }) => sentence !== ''), types.filter(({ sentence }) => sentence === '')];
  return [
    `## ${title}`,
    ...values.flatMap(({ name, signature, sentence }) => [`### ${name}`, `\`\`\`ts\n${signature}\n\`\`\``, prose(sentence)]),
    told.map(({ name, sentence }) => `- \`${name}\`: ${prose(sentence)}`).join('\n'),
    bare.length === 0 ? '' : `Types: ${bare.map(({ name }) => `\`${name}\``).join(', ')}.`,
  ]
    .filter((part) => part !== '')
    .join('\n\n');
};

it('is the page', async () => {
  const values = all.filter(({ kind }) => kind === 'value').length;
  const text = `---
outline: [2, 3]
---
<!-- Written by scripts/api-page.mjs from the exports of niwaki. Do not edit. -->
# API

The ${values} values and ${all.length - values} types of \`niwaki\`, with the first sentence of what their docstrings say; your editor shows the
rest. Tensors, and ops on them such as \`tidy\` and \`dispose\`, are those of \`@tensorflow/tfjs-core\`. What only authors of methods,
kernels and containers need is in [the packages below](../contributing/).

${groups.map(section).join('\n\n')}
`;
  await expect(text).toMatchFileSnapshot('../../../docs/generated/api.md');
});
