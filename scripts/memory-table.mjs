// Writes docs/generated/memory.md: how many bytes each method holds, for models by their shapes. The tests hold the formulas
// against measured bytes. `--check` writes nothing and fails where the file is out of date, as the tests do.
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const test = 'packages/niwaki/test/memory-table.host.test.ts';
const update = process.argv.includes('--check') ? [] : ['--update'];
const { status } = spawnSync('npx', ['vitest', 'run', '--project', 'cpu', test, ...update], {
  cwd: fileURLToPath(new URL('..', import.meta.url)),
  stdio: 'inherit',
  shell: process.platform === 'win32',
});
process.exit(status ?? 1);
