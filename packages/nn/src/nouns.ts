import { nounWith, type Noun } from '@niwaki/tensor';

// What verbs ask their arguments for, by `checkCall`.

export const aModel: Noun = nounWith('a model, as load() gives it', 'stages', 'sites');

export const aSelector: Noun = {
  is: "paths, patterns, 'all-linear' or a predicate",
  test: (given) =>
    typeof given === 'string' ||
    typeof given === 'function' ||
    (Array.isArray(given) && given.every((pattern) => typeof pattern === 'string')),
};

export const tokenIds: Noun = {
  is: 'a list of token ids, as tokenizer.encode() gives it',
  test: (given) => Array.isArray(given) || ArrayBuffer.isView(given),
};

export const anAdapterSet: Noun = nounWith('a set of adapters, as adapt() gives it', 'sites', 'replaced');
