import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it, vi } from 'vitest';

const readme = new URL('../../../README.md', import.meta.url);

/** The first TypeScript block after the mark. */
async function testedBlock(): Promise<string> {
  const text = await readFile(readme, 'utf8');
  const found = /<!-- tested -->\s*```ts\n([^]*?)```/.exec(text);
  if (found === null) throw new Error('README.md has no ```ts block after <!-- tested -->');
  return found[1]!;
}

it("README's lines run as they stand, and leave the adapter they promise", { timeout: 240_000 }, async () => {
  const block = await testedBlock();
  const here = process.cwd();
  const folder = await mkdtemp(join(tmpdir(), 'niwaki-readme-'));
  // Beside this file, so that 'niwaki' is found as it is from anywhere in the package.
  const file = new URL(`./readme-block.${process.pid}.ts`, import.meta.url).pathname;
  const log = vi.spyOn(console, 'log').mockImplementation(() => {});
  try {
    await writeFile(file, `${block}\nexport {};\n`);
    process.chdir(folder);
    await import(/* @vite-ignore */ file);
    const shown = log.mock.calls.map(([first]) => first as unknown);
    const steps = shown.filter(
      (event): event is { kind: string; loss: number } => typeof event === 'object' && event !== null && 'kind' in event,
    );
    expect(steps.filter(({ kind }) => kind === 'step').map(({ loss }) => Number.isFinite(loss))).toEqual([true, true, true]);
    expect(shown.filter((piece) => typeof piece === 'string').length).toBeGreaterThan(0);
    expect((await readdir(join(folder, 'my-adapter'))).sort()).toEqual(['adapter_config.json', 'adapter_model.safetensors']);
  } finally {
    log.mockRestore();
    process.chdir(here);
    await rm(file, { force: true });
    await rm(folder, { recursive: true, force: true });
  }
});
