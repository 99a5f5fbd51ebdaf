/**
 * Every GPU test of every package on the card that is here, each file in a process of its own as the test runner has it, some
 * at a time; one line a failure, then how many. Exits 1 on a failure.
 *   node parity.mjs [part of a path] [--software]
 */
import { execFile } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { startTests, type File, type Suite, type Test, type VitestRunner } from '@vitest/runner';
import { init } from '../../packages/niwaki/src/index.ts';

// The table of ops runs on wasm too, whose binaries do not travel.
const files = import.meta.glob(['../../packages/*/test/*.gpu.test.ts', '!**/ops-table.gpu.test.ts']);
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { software: { type: 'boolean', default: false }, file: { type: 'string' } },
});
const counts = { pass: 0, fail: 0, skip: 0 };

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

if (values.file === undefined) await runAll();
else await runFile(values.file);
console.log(`${counts.pass} passed, ${counts.fail} failed, ${counts.skip} skipped`);
process.exit(counts.fail > 0 || counts.pass === 0 ? 1 : 0);

async function runAll(): Promise<void> {
  const flags = values.software ? ['--software'] : [];
  const waiting = Object.keys(files).filter((path) => positionals.length === 0 || positionals.some((part) => path.includes(part)));
  // Half of the cores: a process of its own thread, and what the driver compiles beside it.
  const lanes = Array.from({ length: Math.max(1, availableParallelism() >> 1) }, async () => {
    for (let path = waiting.shift(); path !== undefined; path = waiting.shift()) report(path, await runProcess(path, flags));
  });
  await Promise.all(lanes);
}

/** What the process of a file printed, and what it ended with. */
function runProcess(path: string, flags: readonly string[]): Promise<{ readonly output: string; readonly end: unknown }> {
  const args = [fileURLToPath(import.meta.url), '--file', path, ...flags];
  return new Promise((resolve) => {
    execFile(process.execPath, args, { maxBuffer: 1 << 26 }, (error, stdout, stderr) => {
      process.stderr.write(stderr);
      resolve({ output: stdout.trimEnd(), end: error?.code ?? error?.signal ?? 0 });
    });
  });
}

function report(path: string, { output, end }: { readonly output: string; readonly end: unknown }): void {
  const last = /(\d+) passed, (\d+) failed, (\d+) skipped$/.exec(output);
  if (last === null) counts.fail++;
  else (['pass', 'fail', 'skip'] as const).forEach((kind, i) => (counts[kind] += Number(last[i + 1])));
  console.log(`${path.replace('../../packages/', '')}: ${last === null ? `${output}\nended with ${String(end)}` : output}`);
}

async function runFile(path: string): Promise<void> {
  await init({ device: 'webgpu', software: values.software });
  const [file] = (await startTests([path], runner)) as File[];
  count(file as never as Suite, path.replace('../../packages/', ''));
  if (file!.result?.state === 'fail' && counts.fail === 0) counts.fail++;
}

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
