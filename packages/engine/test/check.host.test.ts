import { describe, expect, it } from 'vitest';
import { ConfigError, conflictsOf, refuse, rivalry, traitTokens, type Party, type Traits } from '@niwaki/tensor';
import { check, partyOf, type Run } from '../src/index.ts';

const party = (name: string, traits: Traits): Party => ({ name, traits });
const floats = party("'a' (dense)", { gives: ['floats', 'trains', 'encode', 'lookup', 'inputs', 'base-values'] });
const codes = party("'a' (codes)", { gives: ['encode', 'lookup', 'inputs', 'base-values'] });
const quantizer = { kind: 'round', makes: 'weight', traits: { gives: ['encode', 'lookup', 'alone'] } } as const;
const pruner = {
  kind: 'prune',
  makes: 'weight',
  traits: { needs: ['encode'], gives: ['encode', 'zeros'], keeps: ['floats', 'trains'] },
} as const;
const additive = { kind: 'add', makes: 'adapter', traits: { needs: ['base-values'], gives: ['merge', 'delta'] } } as const;
const rewriting = {
  kind: 'rewrite',
  makes: 'adapter',
  traits: { needs: ['floats'], forbids: ['zeros'], claims: ['base-values'], gives: ['merge', 'floats', 'trains', 'encode', 'lookup'] },
} as const;
const optimizer = party("'plain'", {});
const said = (run: Run): string[] => check(run).map(({ parties, rule, token }) => `${parties[0]} ${rule} ${token} of ${parties[1]}`);

describe('conflicts of two parties', () => {
  it('name both, the token, and what to do', () => {
    const [conflict] = conflictsOf(party('x', { needs: ['floats'] }), codes, 'site');
    expect(conflict).toEqual({
      token: 'floats',
      rule: 'needs',
      parties: ['x', "'a' (codes)"],
      message: `x needs ${traitTokens.floats.means}, which 'a' (codes) does not give (floats)`,
      help: traitTokens.floats.help,
    });
    const own = party('x', { needs: ['floats'], help: { floats: 'Do something else.' } });
    expect(conflictsOf(own, codes, 'site')[0]!.help).toBe('Do something else.');
  });

  it('ask each party only for what is its to give', () => {
    const asking = party('x', { needs: ['merge', 'accumulation'] });
    expect(conflictsOf(asking, codes, 'site')).toEqual([]);
    expect(conflictsOf(asking, codes, 'adapter').map(({ token }) => token)).toEqual(['merge']);
  });

  it('arise where one claims what the other needs or claims, whoever comes first', () => {
    const [claims, needs] = [party('x', { claims: ['base-values'] }), party('y', { needs: ['base-values'] })];
    for (const pair of [rivalry(claims, needs), rivalry(needs, claims)]) expect(pair.map(({ parties }) => parties)).toEqual([['x', 'y']]);
    expect(rivalry(claims, claims)).toHaveLength(1);
    expect(rivalry(needs, needs)).toEqual([]);
  });

  it('are thrown with everything in the details, and nothing is thrown where there is none', () => {
    expect(() => refuse([])).not.toThrow();
    const conflicts = conflictsOf(party('x', { needs: ['floats'] }), codes, 'site');
    const details = { token: 'floats', rule: 'needs', parties: ['x', "'a' (codes)"], path: 'a' };
    let error: unknown;
    try {
      refuse(conflicts, { path: 'a' });
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(ConfigError);
    expect(error).toMatchObject({ details, help: traitTokens.floats.help });
  });
});

describe('a run', () => {
  it('has each method find what the one before it left', () => {
    expect(said({ sites: [floats], methods: [pruner, rewriting] })).toEqual(['rewrite forbids zeros of prune']);
    expect(said({ sites: [floats], methods: [quantizer, rewriting] })).toEqual(['rewrite needs floats of round']);
    expect(said({ sites: [floats], methods: [rewriting, quantizer] })).toEqual([]);
    expect(said({ sites: [floats], methods: [pruner, quantizer, additive] })).toEqual([]);
  });

  it('keeps what belongs to the place, whatever it stores', () => {
    const looking = { ...quantizer, traits: { ...quantizer.traits, needs: ['inputs'] } } as const;
    expect(said({ sites: [floats], methods: [quantizer, looking] })).toEqual([]);
    const embedding = party("'e' (dense)", { gives: ['floats', 'lookup', 'encode'], needs: ['lookup'] });
    expect(said({ sites: [embedding], methods: [looking] })).toEqual(["round needs inputs of 'e' (dense)"]);
    expect(said({ sites: [embedding], methods: [pruner] })).toEqual(["'e' (dense) needs lookup of prune"]);
  });

  it('trains adapters where there are some, else what is stored', () => {
    const training = { optimizer };
    expect(said({ sites: [codes], training })).toEqual(["'blockwise' needs trains of 'a' (codes)"]);
    expect(said({ sites: [codes], methods: [additive], training })).toEqual([]);
    expect(said({ sites: [codes], training: { optimizer, estimator: partyOf({ name: 'guess' }) } })).toEqual([]);
  });

  it('asks the commit mode for what the optimizer and the micro-batches need', () => {
    const clip = party("'clip'", { needs: ['global-norm'] });
    expect(said({ training: { optimizer: clip, accumulate: 4 } })).toEqual([]);
    expect(said({ training: { optimizer: clip, accumulate: 4, commit: 'eager' } })).toEqual([
      "'clip' needs global-norm of commit 'eager'",
      "a step of 4 micro-batches needs accumulation of commit 'eager'",
    ]);
  });

  it('merges into what can take it, and says what must be said', () => {
    expect(said({ sites: [floats], methods: [additive], merge: {} })).toEqual([]);
    expect(said({ sites: [codes], methods: [additive], merge: {} })).toEqual(["merging without loss needs floats of 'a' (codes)"]);
    for (const into of ['dense', 'requantize'] as const) expect(said({ sites: [codes], methods: [additive], merge: { into } })).toEqual([]);
    const around = { kind: 'around', makes: 'adapter', traits: {} } as const;
    expect(said({ sites: [floats], methods: [around], merge: { into: 'dense' } })).toEqual(['merging needs merge of around']);
  });

  it('mixes additive adapters that stand on the same base', () => {
    expect(said({ methods: [additive], mixed: true })).toEqual([]);
    const turning = { kind: 'turn', makes: 'adapter', traits: { needs: ['base-values'], gives: ['merge'] } } as const;
    expect(said({ methods: [turning], mixed: true })).toEqual(['a batch with an adapter for each row needs delta of turn']);
    const taking = { ...additive, kind: 'take', traits: { gives: ['delta'], claims: ['base-values'] } } as const;
    expect(said({ methods: [taking], mixed: true })).toEqual(['take claims base-values of a batch with an adapter for each row']);
  });
});
