// All tests: `npm test`. Extra arguments go to vitest. Ends with one plain line of counts.
import { spawnSync } from 'node:child_process';
import { chromiumPath, findChromium, swiftshaderIcd } from './chromium.mjs';

const passed = process.argv.slice(2);
const env = { ...process.env, TURBO_TELEMETRY_DISABLED: '1' };
const step = (title, command, args, options = {}) => {
  console.log(`\n— ${title}`);
  const result = spawnSync(command, args, { stdio: 'inherit', env, shell: process.platform === 'win32', ...options });
  return result.status === 0;
};

let ok = true;
if (passed.length === 0) {
  ok = step('lint', 'npx', ['oxlint', '--quiet']) && ok;
  ok = step('format', 'npx', ['oxfmt', '--check']) && ok;
  ok = step('types', 'npx', ['tsc', '-b']) && ok;
  ok = step('types of tests', 'npx', ['tsc', '-p', 'tsconfig.tests.json']) && ok;
  ok = step('package shapes', 'npx', ['--yes', 'pnpm@10.34.9', 'run', '--silent', 'check:pkg', '--output-logs=errors-only']) && ok;
}

const left = [];
if (chromiumPath === undefined) tryToGetChromium();
const browser = findChromium();
if (browser === undefined) left.push('browser', 'site');
else env.CHROMIUM_PATH = browser;
if (swiftshaderIcd() === undefined) left.push('dawn');
else env.VK_ICD_FILENAMES ??= swiftshaderIcd();

const tested = step('tests', 'npx', ['vitest', 'run', ...left.map((project) => `--project=!${project}`), ...passed]);
if (left.length > 0) {
  console.log(
    `\nLeft out: the tests ${left.join(', ')}, for want of a Chromium. Install one (Debian: apt-get install chromium; macOS: brew install --cask chromium)`,
  );
  console.log('or name yours in CHROMIUM_PATH, then run npm test again.');
}
if (!ok) console.log('\nA check before the tests failed; see above.');
process.exit(ok && tested ? 0 : 1);

function tryToGetChromium() {
  console.log('\n— no Chromium found, trying to get one');
  if (process.platform === 'linux' && process.getuid?.() === 0) {
    const quiet = { stdio: 'ignore', env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' } };
    spawnSync('apt-get', ['update'], quiet);
    if (spawnSync('apt-get', ['install', '-y', 'chromium'], quiet).status === 0) return;
  }
  spawnSync('npx', ['playwright', 'install', 'chromium'], { stdio: 'ignore', timeout: 300_000 });
}
