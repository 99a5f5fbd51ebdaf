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

const packages = new Map<string, object>();
for (const name of readdirSync(new URL('packages/', root))) {
  const index = new URL(`packages/${name}/src/index.ts`, root);
  if (name !== 'niwaki' && name !== 'testing') packages.set(`@niwaki/${name}`, (await import(index.href)) as object);
}
packages.set('niwaki', niwaki);

/** Values that a block imports: [name, package]. */
const importsOf = (block: string): [string, string][] =>
  [...block.matchAll(/import \{([^}]*)\} from '((?:@niwaki\/)?\w+)'/g)].flatMap(([, names, from]) =>
    names!
      .split(',')
      .map((name) => name.trim())
      .filter((name) => !name.startsWith('type '))
      .map((name): [string, string] => [name, from!]),
  );

describe.each(pages)('%s', (page) => {
  it('calls only what niwaki exports, or what it imports; a page for authors calls what any package does', () => {
    const blocks = [...textOf(page).matchAll(/```ts\n([^]*?)```/g)].map(([, block]) => block!);
    const calls = blocks.flatMap((block) => [...block.matchAll(/(?<![.\w])([a-z]\w+)\(/g)].map(([, name]) => name!));
    const imports = blocks.flatMap(importsOf);
    expect(imports.filter(([name, from]) => !(name in packages.get(from)!))).toEqual([]);
    const imported = new Set(imports.map(([name]) => name));
    const open = /\/(contributing|adr)\//.test(page) ? [...packages.values()] : [niwaki];
    const known = (name: string): boolean => imported.has(name) || readers.has(name) || open.some((those) => name in those);
    expect([...new Set(calls)].filter((name) => !known(name))).toEqual([]);
  });

  it('names only files that are there, and links only to pages that are', () => {
    const text = textOf(page);
    const named = [...text.matchAll(/`((?:packages|bench|docs|scripts|examples)\/[^`<>* ]*)`/g)].map(([, path]) => new URL(path!, root));
    const linked = [...text.matchAll(/\]\((\.{1,2}\/[^)#]*)/g)].map(([, link]) => new URL(link!, new URL(page, root)));
    const there = ({ href }: URL): boolean => ['', '.md', 'index.md', '/index.md'].some((end) => existsSync(new URL(href + end)));
    expect([...named, ...linked].filter((address) => !there(address)).map(({ href }) => href)).toEqual([]);
  });
});
