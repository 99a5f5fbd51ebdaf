import { describe, it } from 'vitest';
import { lora, type CommitMode } from '../src/index.ts';
import { onTiny } from '../../testing/src/contract-model.ts';
import { wide } from '../../testing/src/weight-method-contract.ts';
import { adapters, optimizers, pruners, quantizers, sampler, expectThrough, type Adapter } from './compositions.ts';

// Every pair that `check` calls legal trains a small model and lowers its loss; every other fails with the error that
// `check` computed. What is paired comes from the lists of the packages' contract suites.

const lowRank: Adapter = { make: () => lora({ rank: 2, alpha: 4 }), trained: () => 0 };

describe.each(pruners)('%s', (_, prune) => {
  describe.each(quantizers)('with %s', (__, quantize) => {
    it.each([
      ['before', [prune, quantize]],
      ['after', [quantize, prune]],
    ] as const)('%s it, under a LoRA', (___, methods) => onTiny((model) => expectThrough(model, methods, lowRank), wide));
  });
});

describe('a sample of triples', () => {
  const pick = sampler(7);
  const formats = [...quantizers, ...pruners];
  const commits: readonly CommitMode[] = ['step', 'eager'];
  const samples = Array.from({ length: 60 }, () => ({
    first: pick(formats),
    second: pick(formats),
    adapter: pick(adapters.filter(([, { at }]) => at === undefined)),
    optimizer: pick(optimizers),
    commit: pick(commits),
  }));
  it.each(
    samples.map((sample) => [sample.first[0], sample.second[0], sample.adapter[0], sample.optimizer[0], sample.commit, sample] as const),
  )('%s, %s, %s, %s, %s', (_, __, ___, ____, commit, { first, second, adapter, optimizer: [, { make, rate = 0.01 }] }) =>
    onTiny((model) => expectThrough(model, [first[1], second[1]], adapter[1], { optimizer: make(), rate, commit }), wide),
  );
});
