/** Every GPU test of every package on the card that is here; one line a failure, then how many. Exits 1 on a failure. */
import { startTests, type File, type Suite, type Test, type VitestRunner } from '@vitest/runner';
import { init } from '../../packages/niwaki/src/index.ts';

const files = import.meta.glob('../../packages/*/test/*.gpu.test.ts');
const { description } = await init({ device: 'webgpu', software: process.argv.includes('--software') });
console.log(`parity on ${description}`);

const config = {
  root: '/',
  setupFiles: [],
  sequence: { shuffle: false, concurrent: false, seed: 1, hooks: 'stack', setupFiles: 'list' },
  passWithNoTests: false,
  allowOnly: false,
  maxConcurrency: 1,
  testTimeout: 300_000,
  hookTimeout: 300_000,
  retry: 0,
  includeTaskLocation: false,
  tags: [],
  tagsFilter: undefined,
  strictTags: false,
  chaiConfig: undefined,
};
const runner = {
  config,
  importFile: async (path: string, source: string) => (source === 'collect' ? await files[path]!() : undefined),
} as unknown as VitestRunner;

const only = process.argv.slice(2).filter((argument) => !argument.startsWith('--'));
const chosen = Object.keys(files).filter((path) => only.length === 0 || only.some((part) => path.includes(part)));
const counts = { pass: 0, fail: 0, skip: 0 };

function count(task: Suite | Test, path: string): void {
  const name = `${path} > ${task.name}`;
  const state = task.result?.state;
  if (state === 'fail') for (const { message } of task.result?.errors ?? []) console.log(`✗ ${name}\n    ${message.split('\n')[0]}`);
  if (task.type === 'suite') {
    if (state === 'fail' && task.tasks.length === 0) counts.fail++;
    for (const inner of task.tasks) count(inner as Suite | Test, name);
    return;
  }
  counts[state === 'pass' ? 'pass' : state === 'fail' ? 'fail' : 'skip']++;
}

for (const path of chosen) {
  const started = performance.now();
  const before = { ...counts };
  const [file] = (await startTests([path], runner)) as File[];
  const short = path.replace('../../packages/', '');
  count(file as never as Suite, short);
  if (file!.result?.state === 'fail' && counts.fail === before.fail) counts.fail++;
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  console.log(
    `${short}: ${counts.pass - before.pass} passed, ${counts.fail - before.fail} failed, ${counts.skip - before.skip} skipped, ${seconds} s`,
  );
}
console.log(`${counts.pass} passed, ${counts.fail} failed, ${counts.skip} skipped`);
process.exit(counts.fail > 0 || counts.pass === 0 ? 1 : 0);
