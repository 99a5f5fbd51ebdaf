import { ConfigError, type NiwakiError } from './errors.ts';

/** Who is asked for a token: a site with what it stores, an adapter, a one-shot method, a transform, the commit mode. */
export type Giver = 'site' | 'adapter' | 'method' | 'transform' | 'commit';

export interface TokenEntry {
  readonly of: Giver;
  /** What it is, as the object of a sentence: 'needs …'. */
  readonly means: string;
  /** What to do where it is missing, or there and not wanted. */
  readonly help: string;
}

/** The closed list of what may be given, needed, forbidden or claimed: legality is computed from these alone. What each means is in `traitTokens`. */
export type Token =
  | 'floats'
  | 'trains'
  | 'encode'
  | 'lookup'
  | 'zeros'
  | 'inputs'
  | 'bias'
  | 'base-values'
  | 'merge'
  | 'delta'
  | 'alone'
  | 'host-work'
  | 'global-norm'
  | 'accumulation';

export const traitTokens: Readonly<Record<Token, TokenEntry>> = {
  floats: { of: 'site', means: 'the numbers of a matrix themselves, not codes for them', help: 'Do it before the model is quantized.' },
  trains: { of: 'site', means: 'gradients of what is stored', help: 'Train an adapter on this weight.' },
  encode: {
    of: 'site',
    means: 'another matrix in the same format',
    help: 'Do it while the matrix is in floats, or in a format that Niwaki writes.',
  },
  lookup: { of: 'site', means: 'rows by id', help: 'Leave embeddings out of the selection, or choose a format with lookup.' },
  zeros: { of: 'site', means: 'entries that must stay 0', help: 'Do it before pruning.' },
  inputs: { of: 'site', means: 'input vectors to take statistics of', help: 'Leave embeddings out of `at`.' },
  bias: { of: 'site', means: 'a bias', help: 'Keep the adapter beside the model, or train it without a bias.' },
  'base-values': {
    of: 'site',
    means: 'the matrix as the model came with it',
    help: 'Merge the other adapter for good (mergeAndUnload), or delete it first.',
  },
  merge: { of: 'adapter', means: 'a matrix that does the same', help: 'Keep the adapter beside the model.' },
  delta: {
    of: 'adapter',
    means: 'a change that is added to the output',
    help: 'Mix additive adapters only, or run one adapter for the whole batch.',
  },
  alone: {
    of: 'method',
    means: 'a weight made of one matrix alone, without data',
    help: 'Use a method that rounds each matrix by itself.',
  },
  'host-work': { of: 'transform', means: 'state that is laid out on the host', help: 'Wrap the transform inside it instead.' },
  'global-norm': {
    of: 'commit',
    means: 'all gradients of a step at once',
    help: "Use commit: 'step', or an optimizer that takes each gradient by itself.",
  },
  accumulation: { of: 'commit', means: 'gradients summed over micro-batches', help: "Use commit: 'step', or one batch a step." },
};

/** What one noun says of itself, as data. */
export interface Traits {
  /** Of a method: what the weights and adapters that it makes give. */
  readonly gives?: readonly Token[];
  /** What the other side must give. */
  readonly needs?: readonly Token[];
  /** What the other side must neither give nor need. */
  readonly forbids?: readonly Token[];
  /** Taken for itself alone: nobody else at the same place may claim or need it. */
  readonly claims?: readonly Token[];
  /** Of a method that makes weights: what its weights give if the ones before them did. */
  readonly keeps?: readonly Token[];
  /** What to do about a token, where the method knows better than the token. */
  readonly help?: { readonly [T in Token]?: string };
}

/** Something with traits, under the name that errors call it by. */
export interface Party {
  readonly name: string;
  readonly traits: Traits;
}

/** Why two parties do not go together. */
export interface Conflict {
  readonly token: Token;
  readonly rule: 'needs' | 'forbids' | 'claims';
  /** Who minds, and whom. */
  readonly parties: readonly [string, string];
  /** Names both parties and the token. */
  readonly message: string;
  /** What to do. */
  readonly help: string;
}

/** What one party misses or minds of another. @param as what the other one is asked as */
export function conflictsOf(who: Party, other: Party, as: Giver): readonly Conflict[] {
  const { needs = [], forbids = [] } = who.traits;
  const { gives = [], needs: asks = [] } = other.traits;
  return [
    ...needs
      .filter((token) => traitTokens[token].of === as && !gives.includes(token))
      .map((token) => conflict(who, other, 'needs', token, `needs ${traitTokens[token].means}, which ${other.name} does not give`)),
    ...forbids
      .filter((token) => gives.includes(token) || asks.includes(token))
      .map((token) => conflict(who, other, 'forbids', token, `does not go with ${traitTokens[token].means}, which ${other.name} has`)),
  ];
}

/** What two parties at one place both want for themselves. */
export function rivalry(one: Party, other: Party): readonly Conflict[] {
  const against = (who: Party, whom: Party): readonly Conflict[] => {
    const wanted = [...(whom.traits.claims ?? []), ...(whom.traits.needs ?? [])];
    return (who.traits.claims ?? [])
      .filter((token) => wanted.includes(token))
      .map((token) => conflict(who, whom, 'claims', token, `takes ${traitTokens[token].means}, on which ${whom.name} stands`));
  };
  const found = against(one, other);
  return found.length > 0 ? found : against(other, one);
}

const conflict = (who: Party, other: Party, rule: Conflict['rule'], token: Token, said: string): Conflict => ({
  token,
  rule,
  parties: [who.name, other.name],
  message: `${who.name} ${said} (${token})`,
  help: who.traits.help?.[token] ?? traitTokens[token].help,
});

/** @throws the first of some conflicts as an error, its parties and its token in `details` */
export function refuse(
  conflicts: readonly Conflict[],
  details: Readonly<Record<string, unknown>> = {},
  Class: typeof NiwakiError = ConfigError,
): void {
  const [first] = conflicts;
  if (first === undefined) return;
  const { message, help, token, rule, parties } = first;
  throw new Class(message, { ...details, token, rule, parties, help });
}
