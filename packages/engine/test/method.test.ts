import { expect, it } from 'vitest';
import { ConfigError, denseParameter, memory, ones, zeros, type Tensor2D } from '@niwaki/tensor';
import { disposeWeight, type Weight } from '@niwaki/weights';
import type { Adapter, Model, Site } from '@niwaki/nn';
import { applyMethod, defineMethod, type Method } from '@niwaki/engine';

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
