import { describe, expect, it } from 'vitest';
import { NotFoundError } from '../src/errors.ts';
import { editDistance } from '../src/nearest.ts';
import { matchPaths, matchesPath } from '../src/paths.ts';

const paths = [0, 1].flatMap((layer) =>
  ['self_attn.q_proj', 'self_attn.v_proj', 'mlp.up_proj'].map((name) => `model.layers.${layer}.${name}`),
);

function caught(attempt: () => unknown): NotFoundError {
  try {
    attempt();
  } catch (error) {
    return error as NotFoundError;
  }
  throw new Error('nothing was thrown');
}

describe('a pattern', () => {
  it('without stars matches the whole path or what follows a dot, never a part of a name', () => {
    expect(matchesPath('q_proj', 'model.layers.0.self_attn.q_proj')).toBe(true);
    expect(matchesPath('self_attn.q_proj', 'model.layers.0.self_attn.q_proj')).toBe(true);
    expect(matchesPath('q_proj', 'q_proj')).toBe(true);
    expect(matchesPath('proj', 'model.layers.0.self_attn.q_proj')).toBe(false);
    expect(matchesPath('attn.q_proj', 'model.layers.0.self_attn.q_proj')).toBe(false);
    expect(matchesPath('a.b', 'axb')).toBe(false);
  });

  it('with a star stays inside one segment', () => {
    expect(matchesPath('model.layers.*.mlp.up_proj', 'model.layers.11.mlp.up_proj')).toBe(true);
    expect(matchesPath('*_proj', 'model.layers.0.self_attn.q_proj')).toBe(true);
    expect(matchesPath('model.*.up_proj', 'model.layers.0.mlp.up_proj')).toBe(false);
  });

  it('with two stars crosses segments, or none', () => {
    expect(matchesPath('**.q_proj', 'q_proj')).toBe(true);
    expect(matchesPath('**.q_proj', 'model.layers.0.self_attn.q_proj')).toBe(true);
    expect(matchesPath('model.**.q_proj', 'model.q_proj')).toBe(true);
    expect(matchesPath('layers.0.**', 'model.layers.0.mlp.up_proj')).toBe(true);
    expect(matchesPath('layers.0.**', 'model.layers.0')).toBe(true);
    expect(matchesPath('layers.0.**', 'model.layers.01.mlp')).toBe(false);
    expect(matchesPath('**', 'a.b')).toBe(true);
    expect(matchesPath('**.q_proj', 'model.aq_proj')).toBe(false);
  });

  it('with a caret starts where the path starts', () => {
    expect(matchesPath('^layers.0.q', 'layers.0.q')).toBe(true);
    expect(matchesPath('^layers.0.q', 'model.layers.0.q')).toBe(false);
  });
});

describe('matchPaths', () => {
  it('keeps the order of the paths and takes each once', () => {
    expect(matchPaths(['v_proj', '**.layers.0.**', 'q_proj'], paths)).toEqual([paths[0], paths[1], paths[2], paths[3], paths[4]]);
  });

  it('knows aliases', () => {
    expect(matchPaths('all-linear', paths, { aliases: { 'all-linear': (path) => !path.includes('mlp') } })).toHaveLength(4);
  });

  it('refuses a pattern that matches nothing, and says what is near', () => {
    const attempt = (): string[] => matchPaths(['q_proj', 'vproj'], paths, { what: 'site' });
    expect(attempt).toThrow(NotFoundError);
    expect(attempt).toThrow("no site matches 'vproj'");
    expect(attempt).toThrow(/Nearest names: model\.layers\.\*\.self_attn\.v_proj/);
    const { details } = caught(attempt);
    expect(details['patterns']).toEqual(['vproj']);
    expect(details['nearest']).toHaveLength(3);
    expect(matchPaths(['q_proj', 'vproj'], paths, { allowMissing: true })).toHaveLength(2);
    expect(() => matchPaths(['vproj'], paths, { allowMissing: true })).toThrow(NotFoundError);
    expect(() => matchPaths([], paths)).toThrow('no pattern was given');
  });

  it('offers names that are themselves patterns which match', () => {
    const names = caught(() => matchPaths('self_atn.q_proj', paths)).details['nearest'] as string[];
    expect(names.map((name) => matchPaths(name, paths).length)).toEqual([2, 2, 2]);
  });
});

describe('editDistance', () => {
  it('counts inserts, deletions, replacements and swaps', () => {
    expect(editDistance('', 'abc')).toBe(3);
    expect(editDistance('kitten', 'sitting')).toBe(3);
    expect(editDistance('q_porj', 'q_proj')).toBe(1);
    expect(editDistance('same', 'same')).toBe(0);
  });
});
