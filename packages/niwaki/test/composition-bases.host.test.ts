import { describe, it } from 'vitest';
import { adapterParty } from '@niwaki/nn';
import { transformParty } from '@niwaki/optim';
import { dispose, tidy } from '@niwaki/tensor';
import { mergeAdapter } from '../src/index.ts';
import { onTiny } from '../../testing/src/contract-model.ts';
import { wide } from '../../testing/src/weight-method-contract.ts';
import { adam, adapters, expectAsComputed, bases, expectFall, fit, optimizers, ownParts, partiesAt, put } from './compositions.ts';

// Every pair that `check` calls legal trains a small model and lowers its loss; every other fails with the error that
// `check` computed. What is paired comes from the lists of the packages' contract suites.

describe.each(bases)('over %s', (_, store) => {
  it.each(adapters)('%s trains, and merges or says why not', (__, entry) =>
    onTiny(async (model) => {
      await store(model);
      const method = entry.make();
      const sites = partiesAt(model, entry.at, method);
      const conflicts = await expectAsComputed({ sites, methods: [method] }, () => put(model, entry));
      if (conflicts.length > 0) return;
      expectFall(await fit(model, adam));
      if (entry.mergeMisses !== undefined) return;
      const worn = [...model.adapters.get('default')!.sites].map(([path, adapter]) => adapterParty('default', path, adapter));
      await expectAsComputed({ adapters: worn, sites: partiesAt(model, entry.at, method), merge: {} }, () => mergeAdapter(model));
    }, wide),
  );

  it('what is stored trains by every optimizer, or by none', () =>
    onTiny(async (model) => {
      await store(model);
      const wrt = ownParts(model);
      const values = wrt.map((parameter) => tidy(() => parameter.read().clone()));
      const restore = (): void => wrt.forEach((parameter, i) => parameter.write(values[i]!.clone()));
      for (const [, { make, rate = 0.01 }] of optimizers) {
        const optimizer = make();
        let losses: number[] = [];
        const conflicts = await expectAsComputed(
          { sites: partiesAt(model), training: { optimizer: transformParty(optimizer) } },
          async () => {
            losses = await fit(model, { optimizer, rate, wrt });
          },
        );
        if (conflicts.length > 0) break;
        expectFall(losses);
        restore();
      }
      dispose(values);
    }, wide));
});
