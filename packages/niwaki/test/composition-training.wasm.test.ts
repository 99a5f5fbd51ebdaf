import { describe, expect, it } from 'vitest';
import { adapterParty } from '@niwaki/nn';
import { transformParty } from '@niwaki/optim';
import { chain, clipByGlobalNorm } from '../src/index.ts';
import { onTiny } from '../../testing/src/contract-model.ts';
import { wide } from '../../testing/src/weight-method-contract.ts';
import { adam, adapters, eachOptimizer, expectAsComputed, expectFall, fit, optimizers, participants, put } from './compositions.ts';

// Every pair that `check` calls legal trains a small model and lowers its loss; every other fails with the error that
// `check` computed. What is paired comes from the lists of the packages' contract suites.

describe.each(adapters)('%s', (_, entry) => {
  it.each(eachOptimizer)('learns by %s', (__, { make, rate = 0.01 }) =>
    onTiny(async (model) => {
      await put(model, entry);
      expectFall(await fit(model, { optimizer: make(), rate }));
    }, wide),
  );

  it('learns stage by stage, and in sums of micro-batches', () =>
    onTiny(async (model) => {
      await put(model, entry);
      expectFall(await fit(model, { ...adam, commit: 'eager' }));
      expectFall(await fit(model, { ...adam, accumulate: 2 }));
    }, wide));

  it.each(adapters)('shares its places with %s, or is refused', (__, other) =>
    onTiny(async (model) => {
      await put(model, entry, 'first');
      const method = other.make();
      const places = new Set(model.sites(other.at ?? 'all-linear', { points: method.points }).map(({ path }) => path));
      const worn = [...model.adapters.get('first')!.sites].filter(([path]) => places.has(path));
      const [met] = worn.map(([path, adapter]) => adapterParty('first', path, adapter));
      await expectAsComputed({ ...(met && { adapters: [met] }), methods: [method] }, () => put(model, other, 'second'));
    }, wide),
  );
});

describe.each(['step', 'eager'] as const)("commit '%s'", (commit) => {
  it.each([
    ['a bound on the global norm', chain(clipByGlobalNorm(1), adam.optimizer), 1],
    ['several micro-batches', adam.optimizer, 3],
  ] as const)('and %s, where all gradients are there at once', (_, optimizer, accumulate) =>
    onTiny(async (model) => {
      let losses = [1, 0];
      const conflicts = await expectAsComputed({ training: { optimizer: transformParty(optimizer), commit, accumulate } }, async () => {
        losses = await fit(model, { ...adam, optimizer, commit, accumulate });
      });
      expectFall(losses);
      expect(conflicts.length > 0).toBe(commit === 'eager');
    }),
  );

  it.each(optimizers)('and %s', (_, { make, rate = 0.01 }) =>
    onTiny(async (model) => expectFall(await fit(model, { optimizer: make(), rate, commit }))),
  );

  describe.each(participants)('and %s', (_, { make: makeParticipant }) => {
    it.each(eachOptimizer)('by %s', (__, { make, rate = 0.01 }) =>
      onTiny(async (model) => expectFall(await fit(model, { optimizer: make(), rate, commit, participants: [makeParticipant()] }))),
    );
  });
});
