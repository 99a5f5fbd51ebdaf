import type { ActivationQuantizer, Weight } from '@niwaki/weights';
import type { Model, Site } from '@niwaki/nn';

/** What stands in at sites for a while: forms that are being fitted, over windows that share blocks. */
export interface Lends {
  /** Puts a weight at a site and keeps the stored one alive beside it. */
  lend(site: Site, weight: Weight): void;
  /** The same for what rounds its input. */
  lendInput(site: Site, input: ActivationQuantizer): void;
  of(site: Site): Weight | undefined;
  inputOf(site: Site): ActivationQuantizer | undefined;
  /** Everything that stands in now. */
  held(): readonly Held[];
  /** What is stored back at its site, before it is replaced for good. @returns what frees that which stood in and is not there for good now */
  take(site: Site): () => void;
  /** What is stored back at every site. */
  dispose(): void;
}

export interface Held {
  readonly site: Site;
  /** With the one beside it. */
  readonly weight?: { readonly stored: Weight; readonly lent: Weight };
  readonly input?: ActivationQuantizer;
}

/** What stands in may be built around parts of what it stands in for, and may stay for good: those live on. */
export function createLends(model: Model): Lends {
  const weights = new Map<Site, { readonly stored: Weight; readonly lent: Weight }>();
  const inputs = new Map<Site, { readonly stored: ActivationQuantizer | undefined; readonly lent: ActivationQuantizer }>();
  const sites = (): readonly Site[] => [...new Set([...weights.keys(), ...inputs.keys()])];
  const takeWeight = (site: Site): (() => void) => {
    const held = weights.get(site);
    if (held === undefined) return () => {};
    weights.delete(site);
    model.replace(site.path, held.stored, { keep: true });
    return () => free(held.lent, [held.stored]);
  };
  const takeInput = (site: Site): (() => void) => {
    const held = inputs.get(site);
    if (held === undefined) return () => {};
    inputs.delete(site);
    model.replaceInput(site.path, held.stored, { keep: true });
    return () => free(held.lent, [held.stored, site.input]);
  };
  const take: Lends['take'] = (site) => {
    const frees = [takeWeight(site), takeInput(site)];
    return () => frees.forEach((release) => release());
  };
  return {
    lend: (site, weight) => {
      const release = takeWeight(site);
      weights.set(site, { stored: site.weight!, lent: weight });
      model.replace(site.path, weight, { keep: true });
      release();
    },
    lendInput: (site, input) => {
      const release = takeInput(site);
      inputs.set(site, { stored: site.input, lent: input });
      model.replaceInput(site.path, input, { keep: true });
      release();
    },
    of: (site) => weights.get(site)?.lent,
    inputOf: (site) => inputs.get(site)?.lent,
    held: () =>
      sites().map((site) => {
        const [weight, input] = [weights.get(site), inputs.get(site)?.lent];
        return { site, ...(weight && { weight }), ...(input && { input }) };
      }),
    take,
    dispose: () => {
      for (const site of sites()) take(site)();
    },
  };
}

type Stored = Pick<Weight, 'parts'>;

function free(lent: Stored, stays: readonly (Stored | undefined)[]): void {
  const kept = new Set(stays.flatMap((one) => Object.values(one?.parts ?? {})));
  for (const part of Object.values(lent.parts)) if (!kept.has(part)) part.dispose();
}
