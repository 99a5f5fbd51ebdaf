import type { Weight } from '@niwaki/weights';
import type { Model, Site } from '@niwaki/nn';

/** Weights that stand in at sites for a while: forms that are being fitted, over windows that share blocks. */
export interface Lends {
  /** Puts a weight at a site and keeps the stored one alive beside it. */
  lend(site: Site, weight: Weight): void;
  of(site: Site): Weight | undefined;
  /** The stored weight back at its site, before it is replaced for good. @returns what frees the one that stood in */
  take(site: Site): () => void;
  /** The stored weights back at every site. */
  dispose(): void;
}

/** What stands in may be built around parts of the weight it stands in for: those stay. */
export function createLends(model: Model): Lends {
  const held = new Map<Site, { readonly stored: Weight; readonly weight: Weight }>();
  const take: Lends['take'] = (site) => {
    const lent = held.get(site);
    if (lent === undefined) return () => {};
    held.delete(site);
    model.replace(site.path, lent.stored, { keep: true });
    const stays = new Set(Object.values(lent.stored.parts));
    return () => {
      for (const part of Object.values(lent.weight.parts)) if (!stays.has(part)) part.dispose();
    };
  };
  return {
    lend: (site, weight) => {
      const free = take(site);
      held.set(site, { stored: site.weight!, weight });
      model.replace(site.path, weight, { keep: true });
      free();
    },
    of: (site) => held.get(site)?.weight,
    take,
    dispose: () => {
      for (const site of held.keys()) take(site)();
    },
  };
}
