import { describe, expect, it } from 'vitest';
import { checkCall, ConfigError, listOf, nounWith, optional } from '../src/index.ts';

const aMethod = nounWith('a method, as nf4() gives it', 'make');

function nf4(): object {
  return { make: 1 };
}

describe('checkCall', () => {
  const check = (method: unknown): void => checkCall('quantize(model, nf4())', { method: [method, aMethod] });

  it('takes what has the members', () => expect(() => check(nf4())).not.toThrow());

  it.each([
    ['nf4', "'nf4'"],
    [undefined, 'nothing'],
    [null, 'nothing'],
    [nf4, 'the function nf4, which has to be called'],
    [8, '8'],
    [['a', 'b'], 'a list of 2'],
    [{ model: 1, tokenizer: 2 }, 'an object with model, tokenizer'],
    [{}, 'an object with nothing'],
  ])('says what was given, what is expected, and shows a right call: %j', (given, shown) => {
    expect(() => check(given)).toThrow(ConfigError);
    expect(() => check(given)).toThrow(
      `quantize: method must be a method, as nf4() gives it, got ${shown}\n  help: Such as quantize(model, nf4()).`,
    );
  });

  it('knows lists, and what may be left away', () => {
    const take = (given: unknown): void => checkCall('train(model)', { methods: [given, optional(listOf(aMethod))] });
    expect(() => take(undefined)).not.toThrow();
    expect(() => take([nf4()])).not.toThrow();
    expect(() => take(nf4())).toThrow(/methods must be a list, each a method, .* got an object with make/);
    expect(() => take([nf4])).toThrow(/got a list of 1/);
  });
});
