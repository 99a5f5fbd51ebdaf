import { describe, expect, it } from 'vitest';
import { checkOptions, ConfigError } from '../src/index.ts';

interface Options {
  readonly rank?: number;
  readonly alpha?: number;
}

describe('checkOptions', () => {
  const check = (options: object): void => checkOptions('lora', options as Options, ['rank', 'alpha']);

  it('takes known names, given or not', () => {
    expect(() => check({})).not.toThrow();
    expect(() => check({ rank: 3, alpha: undefined })).not.toThrow();
  });

  it('names the factory, the unknown name, the nearest one and all of them', () => {
    expect(() => check({ rnk: 3 })).toThrow(/^lora: there is no option 'rnk'\n  help: Did you mean 'rank'\? Known: rank, alpha\.$/);
  });

  it('offers no name that has nothing to do with it', () => {
    expect(() => check({ temperature: 1 })).toThrow(/^lora: there is no option 'temperature'\n  help: Known: rank, alpha\.$/);
    expect(() => checkOptions('causalLM', { mean: true } as object, [])).toThrow(/no option 'mean'\n  help: There is none\.$/);
  });

  it('knows nothing that every object has', () => {
    expect(() => check({ toString: 1 })).toThrow(/no option 'toString'/);
    expect(() => check(JSON.parse('{"__proto__": 1}') as object)).toThrow(/no option '__proto__'/);
  });

  it('refuses what is no object', () => {
    expect(() => check(8 as never)).toThrow(/lora: options must be an object with some of rank, alpha, got 8/);
    expect(() => check(null as never)).toThrow(ConfigError);
  });

  it('does not compile with a name too few or too many', () => {
    // @ts-expect-error alpha is missing
    checkOptions('lora', {} as Options, ['rank']);
    // @ts-expect-error 'bits' is no option
    expect(() => checkOptions('lora', {} as Options, ['rank', 'alpha', 'bits'])).not.toThrow();
  });
});
