// What the scripts that write docs/generated have in common: each writes its page, or with --check says that it is another one.
import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import { fileURLToPath } from 'node:url';

/**
 * Writes docs/generated/<name>.md; with `--check` exits with 1 where it does not hold `text`.
 * @param script the script's import.meta.url
 */
export function writeOrCheck(name, text, { script, told }) {
  const file = new URL(`../docs/generated/${name}.md`, import.meta.url);
  if (process.argv.includes('--check')) {
    let old = '';
    try {
      old = readFileSync(file, 'utf8');
    } catch {}
    if (old === text) return;
    console.error(`docs/generated/${name}.md is out of date: node scripts/${basename(fileURLToPath(script))}`);
    process.exit(1);
  }
  mkdirSync(new URL('.', file), { recursive: true });
  writeFileSync(file, text);
  console.log(`${fileURLToPath(file)}: ${told}`);
}

/** The same for a page that a test holds as its snapshot; ends the process as the test does. */
export function writeOrCheckBy(test, { project = 'cpu' } = {}) {
  const update = process.argv.includes('--check') ? [] : ['--update'];
  const { status } = spawnSync('npx', ['vitest', 'run', '--project', project, test, ...update], {
    cwd: fileURLToPath(new URL('..', import.meta.url)),
    stdio: 'inherit',
    shell: process.platform === 'win32',
  });
  process.exit(status ?? 1);
}

/** Whether a script runs as a program, not for its exports. */
export const isMain = (script) => process.argv[1] === fileURLToPath(script);
