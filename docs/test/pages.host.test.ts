import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import * as niwaki from 'niwaki';

const root = new URL('../../', import.meta.url);
const inFolder = (folder: string): string[] =>
  readdirSync(new URL(folder, root))
    .filter((name) => name.endsWith('.md'))
    .map((name) => `${folder}${name}`);
const pages = ['README.md', ...['docs/', 'docs/guide/', 'docs/methods/', 'docs/contributing/', 'docs/adr/'].flatMap(inFolder)];
const textOf = (page: string): string => readFileSync(new URL(page, root), 'utf8');

/** Names that stand for something of the reader's own. */
const readers = new Set(['rounded', 'twn', 'ternary']);

describe.each(pages)('%s', (page) => {
  it('calls only what niwaki exports', () => {
    const blocks = [...textOf(page).matchAll(/```ts\n([^]*?)```/g)].map(([, block]) => block!);
    const calls = blocks.flatMap((block) => [...block.matchAll(/(?<![.\w])([a-z]\w+)\(/g)].map(([, name]) => name!));
    const imports = blocks.flatMap((block) =>
      [...block.matchAll(/import \{([^}]*)\} from 'niwaki'/g)].flatMap(([, names]) => names!.split(',').map((name) => name.trim())),
    );
    expect([...new Set([...calls, ...imports])].filter((name) => !(name in niwaki) && !readers.has(name))).toEqual([]);
  });

  it('names only files that are there, and links only to pages that are', () => {
    const text = textOf(page);
    const named = [...text.matchAll(/`((?:packages|bench|docs|scripts|examples)\/[^`<>* ]*)`/g)].map(([, path]) => new URL(path!, root));
    const linked = [...text.matchAll(/\]\((\.{1,2}\/[^)#]*)/g)].map(([, link]) => new URL(link!, new URL(page, root)));
    const there = ({ href }: URL): boolean => ['', '.md', 'index.md', '/index.md'].some((end) => existsSync(new URL(href + end)));
    expect([...named, ...linked].filter((address) => !there(address)).map(({ href }) => href)).toEqual([]);
  });
});
