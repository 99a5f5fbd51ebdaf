// Brings a fresh clone to where everything runs: pnpm through npx, dependencies, build. Does nothing where that is done.
import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const stampFile = join(root, '.niwaki', 'setup-stamp');
const quiet = process.argv.includes('--quiet');

const [major, minor] = process.versions.node.split('.').map(Number);
if (major < 20 || (major === 20 && minor < 19)) {
  console.error(`niwaki needs Node 20.19 or newer, this is ${process.versions.node}.`);
  process.exit(1);
}

/** Newest change of anything that the build reads. */
function newest(path) {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined) return 0;
  if (!stat.isDirectory()) return stat.mtimeMs;
  let latest = stat.mtimeMs;
  for (const name of readdirSync(path))
    if (name !== 'generated' && name !== 'node_modules') latest = Math.max(latest, newest(join(path, name)));
  return latest;
}

const packages = readdirSync(join(root, 'packages'));
const sources = [
  'pnpm-lock.yaml',
  'tsconfig.base.json',
  ...packages.flatMap((name) => ['src', 'assembly', 'build', 'package.json'].map((part) => join('packages', name, part))),
];
const state = String(Math.max(...sources.map((path) => newest(join(root, path)))));

const stamped = statSync(stampFile, { throwIfNoEntry: false }) === undefined ? '' : readFileSync(stampFile, 'utf8');
const whole = packages.every((name) => statSync(join(root, 'packages', name, 'dist'), { throwIfNoEntry: false }) !== undefined);
if (stamped !== state || !whole) {
  run('installing', ['install', '--frozen-lockfile', '--reporter=silent']);
  run('building', ['run', '--silent', 'build', '--output-logs=errors-only']);
  mkdirSync(join(root, '.niwaki'), { recursive: true });
  writeFileSync(stampFile, state);
}

function run(what, args) {
  if (!quiet) console.error(`niwaki: ${what} …`);
  const result = spawnSync('npx', ['--yes', 'pnpm@10.34.9', ...args], {
    cwd: root,
    stdio: ['ignore', quiet ? 'ignore' : 'inherit', 'inherit'],
    shell: process.platform === 'win32',
    env: { ...process.env, TURBO_TELEMETRY_DISABLED: '1', CI: process.env.CI ?? '1' },
  });
  if (result.status !== 0) {
    console.error(`niwaki: ${what} failed; the lines above say why. It needs the npm registry the first time.`);
    process.exit(1);
  }
}
