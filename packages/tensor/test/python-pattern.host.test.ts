import { describe, expect, it } from 'vitest';
import { FormatError } from '../src/errors.ts';
import { matchesSuffixPattern, pythonFullMatch } from '../src/python-pattern.ts';

describe('a Python pattern', () => {
  it('matches the whole path only', () => {
    const pattern = pythonFullMatch('.*\\.(q|v)_proj');
    expect(pattern.test('model.layers.0.self_attn.q_proj')).toBe(true);
    expect(pattern.test('model.layers.0.self_attn.q_proj.lora')).toBe(false);
    expect(pythonFullMatch('a|bc').test('abc')).toBe(false);
  });

  it.each([
    ['(?P<kind>q|v)_(?P=kind)', 'q_q', 'q_v'],
    ['\\Alayers\\.\\d+\\Z', 'layers.12', 'layers.x'],
    ['x{,2}', 'xx', 'xxx'],
    ['[]x]+', ']x]', 'y'],
    ['[^]x]', 'y', ']'],
    ['(?#the heads)(?:q|k)_proj', 'q_proj', 'v_proj'],
    ['layers\\.(?!0\\.).*?proj', 'layers.1.q_proj', 'layers.0.q_proj'],
    ['a*?b', 'aab', 'aa'],
  ])('%s is translated', (source, yes, no) => {
    expect(pythonFullMatch(source).test(yes)).toBe(true);
    expect(pythonFullMatch(source).test(no)).toBe(false);
  });

  it.each(['(?i)q_proj', '(?i:q)_proj', 'a*+b', 'a++', 'a?+', 'a{2}+', '(?>a|b)c', '(a)?(?(1)b|c)', '\\N{DIGIT ONE}', '\\Qa', 'a\\', '[a'])(
    '%s is refused by name',
    (source) => {
      expect(() => pythonFullMatch(source)).toThrow(FormatError);
    },
  );

  it('that is no regular expression at all is a format error', () => {
    expect(() => pythonFullMatch('(a')).toThrow("'(a' is not a regular expression");
  });
});

describe('a rank or alpha key', () => {
  const path = 'model.layers.10.self_attn.q_proj';

  it('matches what follows a dot, and is a pattern itself', () => {
    expect(matchesSuffixPattern('q_proj', path)).toBe(true);
    expect(matchesSuffixPattern('proj', path)).toBe(false);
    expect(matchesSuffixPattern('layers\\.\\d+\\.self_attn\\.(q|k)_proj', path)).toBe(true);
    expect(matchesSuffixPattern('layers.1.self_attn.q_proj', path)).toBe(false);
    expect(matchesSuffixPattern('q_proj|v_proj', 'a.v_proj')).toBe(true);
  });

  it('with a caret starts where the path starts', () => {
    expect(matchesSuffixPattern('^model.layers.10.self_attn.q_proj', path)).toBe(true);
    expect(matchesSuffixPattern('^layers.10.self_attn.q_proj', path)).toBe(false);
    expect(matchesSuffixPattern('^q_proj', 'q_proj')).toBe(true);
  });
});
