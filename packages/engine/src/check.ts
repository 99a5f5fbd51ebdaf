import { conflictsOf, rivalry, traitTokens, type Conflict, type Party, type Token, type Traits } from '@niwaki/tensor';
import { conflictsOfMixing } from '@niwaki/nn';
import type { Method } from './method.ts';

/** What happens together, in the order it happens: as much of it as is known. */
export interface Run {
  /** The places it works on, with what they store at first; one of each form is enough. */
  readonly sites?: readonly Party[];
  /** Adapters that are at these places already. */
  readonly adapters?: readonly Party[];
  /** One-shot methods in the order they are applied: each finds what the one before it left. */
  readonly methods?: readonly Pick<Method, 'kind' | 'title' | 'makes' | 'traits'>[];
  readonly training?: Training;
  /** Rows of one batch with different adapters. */
  readonly mixed?: boolean;
  /** Writing all adapters into what is stored. */
  readonly merge?: { readonly into?: 'dense' | 'requantize' | undefined };
}

/** Adapters train where there are some, else what the sites store. */
export interface Training {
  readonly optimizer: Party;
  /** Default: blockwise backprop. */
  readonly estimator?: Party;
  readonly objective?: Party;
  readonly participants?: readonly Party[];
  /** Default 'step'. */
  readonly commit?: CommitMode;
  /** Micro-batches of a step; default 1. */
  readonly accumulate?: number;
}

export type CommitMode = 'step' | 'eager';

/** Gradients flow to what trains. */
export const backpropTraits: Traits = { needs: ['trains'] };

const commitModes: Readonly<Record<CommitMode, Traits>> = { step: { gives: ['global-norm', 'accumulation'] }, eager: {} };

const commitParty = (mode: CommitMode): Party => ({ name: `commit '${mode}'`, traits: commitModes[mode] });

/** A noun that may say nothing of itself. */
export const partyOf = ({ name, traits = {} }: { readonly name: string; readonly traits?: Traits }): Party => ({
  name: `'${name}'`,
  traits,
});

/**
 * Whether things go together: every reason why not, by the traits of the parties alone. Pure; loads and allocates nothing.
 * The errors of `createStep`, `applyMethod`, `adapt`, `mergeAdapter` and `runRecipe` are the first of what it finds.
 * @example check({ sites: [siteParty(site)], methods: [nf4(), lora({ init: 'pissa' })] })
 */
export function check({ sites = [], adapters = [], methods = [], training, mixed, merge }: Run): readonly Conflict[] {
  const found: Conflict[] = [];
  let places = sites;
  const worn = [...adapters];
  for (const method of methods) {
    const party: Party = { name: method.title ?? method.kind, traits: method.traits };
    for (const place of places) found.push(...conflictsOf(party, place, 'site'));
    if (method.makes === 'adapter') {
      for (const other of worn) found.push(...rivalry(party, other));
      worn.push(party);
      if (method.traits.claims?.includes('base-values')) places = places.map((place) => storedBy(party, place));
    } else {
      const next = places.map((place) => storedBy(party, place));
      places.forEach((place, i) => found.push(...conflictsOf(place, next[i]!, 'site')));
      places = next;
    }
  }
  if (training !== undefined) found.push(...ofTraining(training, worn.length > 0 ? [] : places));
  if (mixed) found.push(...worn.flatMap(conflictsOfMixing));
  if (merge !== undefined) {
    for (const adapter of worn) found.push(...conflictsOf(merging, adapter, 'adapter'));
    for (const place of places) found.push(...conflictsOf(storing(merge.into), place, 'site'));
  }
  return found;
}

/** What belongs to a place, whatever it stores. */
const ofPlaces: ReadonlySet<Token> = new Set(['inputs', 'bias', 'base-values']);

/** A place after a method replaced what it stores; a start that takes the matrix does. */
function storedBy({ name, traits: { gives = [], keeps = [] } }: Party, { traits }: Party): Party {
  const kept = (traits.gives ?? []).filter((token) => ofPlaces.has(token) || keeps.includes(token));
  const own = gives.filter((token) => traitTokens[token].of === 'site');
  return { name, traits: { ...traits, gives: [...own, ...kept] } };
}

function ofTraining(
  {
    optimizer,
    estimator = { name: "'blockwise'", traits: backpropTraits },
    objective,
    participants = [],
    commit = 'step',
    accumulate = 1,
  }: Training,
  places: readonly Party[],
): readonly Conflict[] {
  const mode = commitParty(commit);
  const sums: Party = { name: `a step of ${accumulate} micro-batches`, traits: accumulate > 1 ? { needs: ['accumulation'] } : {} };
  const all = [optimizer, estimator, ...(objective === undefined ? [] : [objective]), ...participants];
  return [
    ...all.flatMap((party) => places.flatMap((place) => conflictsOf(party, place, 'site'))),
    ...[...all, sums].flatMap((party) => conflictsOf(party, mode, 'commit')),
  ];
}

const merging: Party = { name: 'merging', traits: { needs: ['merge'] } };

/** Where a merged matrix goes. Without `into` nothing may get lost. */
function storing(into: 'dense' | 'requantize' | undefined): Party {
  if (into !== undefined) {
    const traits: Traits = into === 'requantize' ? { needs: ['encode'], help: { encode: "Use into: 'dense'." } } : {};
    return { name: `merging into: '${into}'`, traits };
  }
  return {
    name: 'merging without loss',
    traits: {
      needs: ['floats'],
      forbids: ['zeros'],
      help: {
        floats: "Say which: into: 'dense' (f32, more memory) or into: 'requantize' (the same format; the report says what is lost).",
        zeros:
          "Say which: into: 'dense' (f32, the report counts the zeros lost) or into: 'requantize' (the zeros stay; the report says what is lost).",
      },
    },
  };
}
