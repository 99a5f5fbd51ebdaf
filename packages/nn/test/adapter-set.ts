import { add, createDraw, denseParameter, mul, noise, tidy, type Tensor2D } from '@niwaki/tensor';
import { lowRank } from '@niwaki/weights';
import type { Adapter, AdapterSet, Site } from '@niwaki/nn';

/** A rank-2 additive adapter with random factors: enough to tell who acts where. */
export function additive(name: string, site: Site, { scale = 1 }: { scale?: number } = {}): Adapter {
  const [out, width] = site.weight!.shape;
  const factor = (which: string, shape: readonly [number, number]) => {
    const path = `${site.path}.${which}.${name}`;
    return denseParameter(
      path,
      tidy(() => mul(noise(shape, createDraw(7, 0).at(path), 'gaussian'), 0.3)),
      {
        role: which === 'a' ? 'adapterA' : 'adapterB',
        trainable: true,
      },
    );
  };
  const [a, b] = [factor('a', [2, width]), factor('b', [out, 2])];
  const delta = lowRank({ a, b, scale });
  const point = site.point === 'embedding' ? 'embedding' : 'linear';
  return {
    kind: 'additive',
    point,
    parameters: { a, b },
    apply: (x, next, call) => add(next(x), point === 'embedding' ? delta.lookup!(x as never, call) : delta.apply(x as Tensor2D, call)),
    delta: () => delta,
  };
}

export function setOf(name: string, sites: readonly Site[], options: { scale?: number } = {}): AdapterSet {
  return {
    name,
    method: { kind: 'additive', options },
    sites: new Map(sites.map((site) => [site.path, additive(name, site, options)])),
    replaced: new Map(),
    base: 'tiny',
  };
}

export function disposeSet(set: AdapterSet): void {
  for (const adapter of set.sites.values()) for (const parameter of Object.values(adapter.parameters)) parameter.dispose();
  for (const parameter of set.replaced.values()) parameter.dispose();
}
