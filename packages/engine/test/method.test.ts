import { expect, it } from 'vitest';
import { ConfigError, denseParameter, memory, ones, zeros, type Tensor2D } from '@niwaki/tensor';
import { disposeWeight, type Weight } from '@niwaki/weights';
import type { Adapter, Model, Site } from '@niwaki/nn';
import {
  applyMethod,
  baseChanges,
  BusyModelError,
  calibrationHash,
  defineMethod,
  disposeBatch,
  holdModel,
  languageBatch,
  type Method,
} from '@niwaki/engine';

function plainWeight(path: string, fill: 'zeros' | 'ones' = 'zeros'): Weight {
  const matrix = denseParameter(`${path}.weight`, fill === 'zeros' ? zeros([2, 2]) : ones([2, 2]), { role: 'matrix' });
  return { kind: fill, options: {}, shape: [2, 2], parts: { matrix }, matrix, apply: (x) => x, dense: () => matrix.read() as Tensor2D };
}

function toyModel(paths: readonly string[], tied: Readonly<Record<string, string>> = {}): Model {
  const sites: Site[] = [];
  for (const path of paths) {
    const weight = tied[path] === undefined ? plainWeight(path) : sites.find((site) => site.path === tied[path])!.weight!;
    sites.push({ path, point: 'linear', weight, inputId: path });
  }
  return {
    sites: (at: Parameters<Model['sites']>[0]) =>
      sites.filter((site) => (typeof at === 'function' ? at(site) : at === '**' || at === site.path)),
    replace: (path: string, weight: Weight, options?: { keep?: boolean }) => {
      const old = sites.find((site) => site.path === path)!.weight!;
      for (const site of sites) if (site.weight === old) site.weight = weight;
      if (options?.keep !== true) disposeWeight(old);
    },
    dispose: () => new Set(sites.map((site) => site.weight!)).forEach(disposeWeight),
  } as unknown as Model;
}

const toOnes = (failAt?: string): Method =>
  defineMethod({
    kind: 'ones',
    options: { depth: 1 },
    traits: {},
    makes: 'weight',
    make: async (site) => {
      if (site.path === failAt) throw new Error('no');
      return { weight: plainWeight(site.path, 'ones') };
    },
  });

it('replaces every selected weight and reports progress', async () => {
  const before = memory().numTensors;
  const model = toyModel(['a', 'b', 'c']);
  const seen: string[] = [];
  const { made } = await applyMethod(model, toOnes(), {
    at: '**',
    exclude: 'b',
    onProgress: ({ done, total, path }) => seen.push(`${path} ${done}/${total}`),
  });
  expect([...made.keys()]).toEqual(['a', 'c']);
  expect(seen).toEqual(['a 1/2', 'c 2/2']);
  expect(model.sites('**').map((site) => site.weight!.kind)).toEqual(['ones', 'zeros', 'ones']);
  model.dispose();
  expect(memory().numTensors).toBe(before);
});

it('makes a weight that several sites share only once', async () => {
  const model = toyModel(['embed', 'head'], { head: 'embed' });
  const { made } = await applyMethod(model, toOnes(), { at: '**' });
  expect([...made.keys()]).toEqual(['embed']);
  expect(model.sites('head')[0]!.weight).toBe(model.sites('embed')[0]!.weight);
  model.dispose();
});

it('takes everything back when a site fails, and names the site', async () => {
  const before = memory().numTensors;
  const model = toyModel(['a', 'b', 'c']);
  const old = model.sites('**').map((site) => site.weight);
  await expect(applyMethod(model, toOnes('b'), { at: '**' })).rejects.toThrow(/ones at 'b': no/);
  expect(model.sites('**').map((site) => site.weight)).toEqual(old);
  model.dispose();
  expect(memory().numTensors).toBe(before);
});

it('says what is replaced for good when the model is too large to keep twice', async () => {
  const model = toyModel(['a', 'b', 'c']);
  const run = applyMethod(model, toOnes('b'), { at: '**', undoBytes: 0 });
  await expect(run).rejects.toMatchObject({ name: 'StateError', details: { replaced: ['a'] } });
  model.dispose();
});

it('validates every site before it makes the first', async () => {
  const model = toyModel(['a', 'b']);
  let count = 0;
  const method: Method = {
    ...toOnes(),
    validate: (site) => {
      if (site.path === 'b') throw new ConfigError('needs an even side');
    },
    make: async (site) => {
      count++;
      return { weight: plainWeight(site.path) };
    },
  };
  await expect(applyMethod(model, method, { at: '**' })).rejects.toMatchObject({ name: 'ConfigError', details: { path: 'b' } });
  expect(count).toBe(0);
  model.dispose();
});

it('disposes the adapters made so far when a later one fails, or when aborted', async () => {
  const model = toyModel(['a', 'b']);
  const before = memory().numTensors;
  const make = (stop: (path: string) => void): Method =>
    defineMethod({
      kind: 'toy',
      options: {},
      traits: {},
      makes: 'adapter',
      make: async (site) => {
        stop(site.path);
        const adapter: Adapter = {
          kind: 'toy',
          point: 'linear',
          parameters: { a: denseParameter(`${site.path}.a`, zeros([1]), { role: 'adapterA' }) },
          apply: (x, next) => next(x),
        };
        return { adapter };
      },
    });
  const failing = make((path) => {
    if (path === 'b') throw new Error('rank');
  });
  await expect(applyMethod(model, failing, { at: '**' })).rejects.toThrow(/toy at 'b': rank/);
  expect(memory().numTensors).toBe(before);
  const controller = new AbortController();
  const aborting = make(() => controller.abort());
  await expect(applyMethod(model, aborting, { at: '**', signal: controller.signal })).rejects.toMatchObject({ name: 'AbortError' });
  expect(memory().numTensors).toBe(before);
  model.dispose();
});

it('writes itself as kind and options', () => {
  expect(JSON.stringify(toOnes())).toBe('{"kind":"ones","options":{"depth":1}}');
});

it('remembers what replaced weights, as it was asked for and in order; failures and other models are not in it', async () => {
  const [model, other] = [toyModel(['a', 'b', 'c']), toyModel(['a'])];
  await applyMethod(model, toOnes(), { at: '**', exclude: 'b' });
  await expect(applyMethod(model, toOnes('b'), { at: '**' })).rejects.toThrow(/no/);
  await applyMethod(model, toOnes(), { at: ({ path }) => path !== 'c', exclude: 'a' });
  expect(baseChanges(model)).toEqual([
    { kind: 'ones', options: { depth: 1 }, at: '**', exclude: 'b' },
    { kind: 'ones', options: { depth: 1 }, at: ['b'] },
  ]);
  expect(baseChanges(other)).toEqual([]);
  for (const each of [model, other]) each.dispose();
});

it('is refused while somebody holds the model, and lets go after a failure', async () => {
  const model = toyModel(['a', 'b']);
  const letGo = holdModel(model, 'a test');
  const kinds = (): string[] => model.sites('**').map(({ weight }) => weight!.kind);
  await expect(applyMethod(model, toOnes(), { at: '**' })).rejects.toThrow(BusyModelError);
  expect(() => holdModel(model, 'another')).toThrow(/^another cannot begin: a test is at work on this model/);
  expect(kinds()).toEqual(['zeros', 'zeros']);
  letGo();
  const again = holdModel(model, 'another');
  // A second call of what let go already takes nothing from who holds it now.
  letGo();
  expect(() => holdModel(model, 'a third')).toThrow(/another is at work/);
  again();
  await expect(applyMethod(model, toOnes('b'), { at: '**' })).rejects.toThrow(/no/);
  await applyMethod(model, toOnes(), { at: '**' });
  expect(kinds()).toEqual(['ones', 'ones']);
  model.dispose();
});

it('names calibration batches by their tokens, bounds and order', async () => {
  const before = memory().numTensors;
  const batch = (...rows: number[][]): ReturnType<typeof languageBatch> =>
    languageBatch(
      rows.map((ids) => ({ ids })),
      { vocabularySize: 9 },
    );
  const batches = [batch([1, 2, 3]), batch([1, 2, 4]), batch([1, 2], [3, 4]), batch([1, 2, 3], [4])];
  const hashes = await Promise.all([
    ...batches.map((one) => calibrationHash([one])),
    calibrationHash([batches[0]!, batches[1]!]),
    calibrationHash([batches[1]!, batches[0]!]),
  ]);
  expect(new Set(hashes).size).toBe(hashes.length);
  const same = batch([1, 2, 3]);
  expect(await calibrationHash([same])).toBe(hashes[0]);
  for (const each of [...batches, same]) disposeBatch(each);
  expect(memory().numTensors).toBe(before);
});
