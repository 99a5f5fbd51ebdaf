import { expect, it } from 'vitest';
import { check, type Run } from '@niwaki/engine';
import { siteParty } from '@niwaki/nn';
import { transformParty } from '@niwaki/optim';
import { traitTokens, type Conflict, type Party, type Token } from '@niwaki/tensor';
import { ggufBlock } from '@niwaki/weights';
import { adamw, chain, clipByGlobalNorm, type Method } from '../src/index.ts';
import { onTiny } from '../../testing/src/contract-model.ts';
import { wide } from '../../testing/src/weight-method-contract.ts';
import { adapters, bases, eachOptimizer, nameOf, participants, pruners, quantizers, type Adapter } from './compositions.ts';

// docs/generated/compositions.md, from `check` alone. `node scripts/compositions-table.mjs` writes it.

const yes = '✓';
const table = (head: readonly string[], rows: readonly (readonly string[])[]): string =>
  [`| ${head.join(' | ')} |`, `|${head.map(() => '---').join('|')}|`, ...rows.map((row) => `| ${row.join(' | ')} |`)].join('\n');

/** A mark where it goes, else the token it fails by; each reason once, under the table. */
function grid<R extends readonly [string, unknown], C extends readonly [string, unknown]>(
  corner: string,
  rows: readonly R[],
  columns: readonly C[],
  run: (row: R[1], column: C[1], names: readonly [string, string]) => Run,
): string {
  const reasons = new Map<string, Conflict>();
  const cell = (row: R, column: C): string => {
    const [first] = check(run(row[1], column[1], [row[0], column[0]]));
    if (first === undefined) return yes;
    if (!reasons.has(`${first.token} ${first.rule}`)) reasons.set(`${first.token} ${first.rule}`, first);
    return `\`${first.token}\``;
  };
  const body = rows.map((row) => [row[0], ...columns.map((column) => cell(row, column))]);
  const why = [...reasons.values()].map(({ token, message, help }) => `- \`${token}\`: such as “${message}”. ${help}`);
  return [table([corner, ...columns.map(([name]) => name)], body), ...(why.length > 0 ? ['', ...why] : [])].join('\n');
}

const party = (method: Method): Party => ({ name: nameOf(method), traits: method.traits });
const isAtMatrices = ([, { make }]: readonly [string, Adapter]): boolean =>
  make().points === undefined && (make().traits.gives?.includes('merge') ?? false);

it('docs/generated/compositions.md says what check says', async () => {
  const stored: [string, Party][] = [];
  for (const [name, store] of bases) {
    await onTiny(async (model) => {
      await store(model);
      const { traits } = siteParty(model.sites('all-linear')[0]!);
      stored.push([name, { name, traits }]);
    }, wide);
  }
  const readOnly = ggufBlock('a', [1, 256], 'Q4_K', new Uint8Array(144));
  stored.push(['Q4_K, Q6_K', { name: 'Q4_K', traits: siteParty({ path: 'a', point: 'linear', weight: readOnly }).traits }]);
  for (const part of Object.values(readOnly.parts)) part.dispose();

  const onMatrices = adapters.filter(isAtMatrices);
  const methods = [...quantizers, ...pruners].map(([name, make]) => [name, make()] as const);
  const adam = transformParty(adamw({ learningRate: 1 }));
  const clipped = transformParty(chain(clipByGlobalNorm(1), adamw({ learningRate: 1 })));
  const steps = [
    ...eachOptimizer.map(([name, { make }]) => [name, { optimizer: transformParty(make()) }] as const),
    ['a bound on the global norm', { optimizer: clipped }] as const,
    ['several micro-batches', { optimizer: adam, accumulate: 2 }] as const,
    ...participants.map(([name, { make }]) => [name, { optimizer: adam, participants: [{ name, traits: make().traits ?? {} }] }] as const),
  ];
  const ends = [
    ['merge', { merge: {} }],
    ["into: 'dense'", { merge: { into: 'dense' } }],
    ["into: 'requantize'", { merge: { into: 'requantize' } }],
    ['a batch of several', { mixed: true }],
  ] as const;

  const text = `<!-- Written by scripts/compositions-table.mjs from check(), which the errors come from too. Do not edit. -->
# What goes with what

Computed from what every method, format and optimizer says of itself, as \`check(run)\` does before anything is changed. ${yes}: it goes,
and a test trains it. Anything else is the token that it fails by; the reasons are under each table.

## Adapters over stored matrices

Adapters of modules and prompts (${adapters
    .filter((entry) => !isAtMatrices(entry))
    .map(([name]) => name)
    .join(', ')}) touch no matrix and go with all of them.

${grid('', stored, onMatrices, (place, { make }) => ({ sites: [place], methods: [make()] }))}

## Training what is stored, without an adapter

${grid('', stored, eachOptimizer, (place, { make }) => ({ sites: [place], training: { optimizer: transformParty(make()) } }))}

## One method after another

Rows come first, on a model in floats.

${grid('', methods, methods, (first, second) => ({ sites: [stored[0]![1]], methods: [first, second] }))}

## Two adapters at one place

Rows are there already.

${grid('', onMatrices, onMatrices, (first, second) => ({ adapters: [party(first.make())], methods: [second.make()] }))}

## What becomes of an adapter

Of one trained on a model in floats.

${grid('', adapters, ends, ({ make }, end) => ({ sites: [stored[0]![1]], methods: [make()], ...end }))}

Of a LoRA, by what its matrix is stored as.

${grid('', stored, ends.slice(0, 3), (place, end) => ({ sites: [place], adapters: [party(onMatrices[0]![1].make())], ...end }))}

## Steps

${grid(
  'commit',
  (['step', 'eager'] as const).map((commit) => [commit, commit] as const),
  steps,
  (commit, training) => ({ training: { ...training, commit } }),
)}

## Tokens

${table(
  ['Token', 'asked of', 'what is asked'],
  (Object.keys(traitTokens) as Token[]).map((token) => [`\`${token}\``, traitTokens[token].of, traitTokens[token].means]),
)}
`;
  await expect(text).toMatchFileSnapshot('../../../docs/generated/compositions.md');
});
