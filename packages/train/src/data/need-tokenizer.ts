import { ConfigError } from '@niwaki/tensor';
import type { Tokenizer } from '@niwaki/hub';

/**
 * The tokenizer, which `load` leaves out where a file has none that it can read.
 * @throws ConfigError that says what needed it
 */
export function needTokenizer(tokenizer: Tokenizer | undefined, what: string): Tokenizer {
  if (tokenizer !== undefined) return tokenizer;
  throw new ConfigError(`${what} needs a tokenizer, and the model came without one`, {
    what,
    help: 'The `warnings` of load say why; loadTokenizer takes one from another folder, such as that of the original model.',
  });
}
