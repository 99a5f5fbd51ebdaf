import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { tinyFolder, type TinyFolder } from './support/tiny-folder.ts';

// The command as people call it: the built files, in a process of their own.
const repository = new URL('../../../', import.meta.url).pathname;
const main = `${repository}packages/cli/dist/main.js`;

let folder: TinyFolder;
let common: string[];
beforeAll(async () => {
  const built = spawnSync(process.execPath, [`${repository}node_modules/typescript/bin/tsc`, '-b', 'packages/cli'], {
    cwd: repository,
    encoding: 'utf8',
  });
  if (!existsSync(main)) throw new Error(`the build left no ${main}:\n${built.stdout}`);
  folder = await tinyFolder();
  const text = await folder.write('text.txt', 'The gardener trims the pine. The pine grows slowly, and so does the gardener.');
  common = [
    'finetune',
    '--model',
    folder.at('model'),
    '--data',
    text,
    '--context',
    '8',
    '--rank',
    '2',
    '--dropout',
    '0.1',
    '--epochs',
    '4',
  ];
  common.push(
    '--schedule',
    'cosine',
    '--warmup',
    '3',
    '--accumulate',
    '2',
    '--checkpoint-every',
    '1',
    '--seed',
    '9',
    '--device',
    'cpu',
    '--json',
  );
}, 600_000);
afterAll(() => folder.remove());

interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly out: string;
  readonly err: string;
}

function start(args: readonly string[]): { child: ChildProcess; ended: Promise<Ended> } {
  const child = spawn(process.execPath, [main, ...args], { cwd: repository });
  let [out, err] = ['', ''];
  child.stdout.on('data', (chunk) => (out += String(chunk)));
  child.stderr.on('data', (chunk) => (err += String(chunk)));
  const ended = new Promise<Ended>((resolve) => child.on('close', (code, signal) => resolve({ code, signal, out, err })));
  return { child, ended };
}

const linesIn = async (path: string): Promise<string[]> =>
  (await readFile(path, 'utf8').catch(() => '')).split('\n').filter((line) => line !== '');

/** Sends a signal once the run has logged so many steps. */
async function startAndSignal(
  args: readonly string[],
  out: string,
  { after, signal }: { after: number; signal: NodeJS.Signals },
): Promise<Ended> {
  const { child, ended } = start(args);
  const running = (): boolean => child.exitCode === null && child.signalCode === null;
  while (running() && (await linesIn(`${out}/run.jsonl`)).length < after) await new Promise((resolve) => setTimeout(resolve, 3));
  child.kill(signal);
  return ended;
}

const adapterIn = (out: string): Promise<Buffer> => readFile(`${out}/adapter_model.safetensors`);
const essence = async (out: string): Promise<unknown[]> =>
  (await linesIn(`${out}/run.jsonl`)).map((line) => {
    const { step, loss, gradNorm, learningRate } = JSON.parse(line) as Record<string, unknown>;
    return { step, loss, gradNorm, learningRate };
  });

describe('a run in a process of its own', () => {
  it('says in a line which device it took and why, whatever the system lacks', { timeout: 60_000 }, async () => {
    const { code, err } = await start(['inspect', '--model', folder.at('model'), '--json']).ended;
    expect(code).toBe(0);
    // Libraries of the system may say something of their own before.
    expect(err).toMatch(/^device: /m);
    expect(err).not.toMatch(/^ +at /m);
  });

  it('that is killed at any step resumes to the bits of one that never stopped', { timeout: 300_000 }, async () => {
    const whole = folder.at('whole');
    const finished = await start([...common, '--out', whole]).ended;
    expect(finished.err).not.toMatch(/niwaki:/);
    expect(finished.code).toBe(0);
    expect(Object.keys(JSON.parse(finished.out) as object)).toEqual(['out', 'steps', 'loss']);
    const expected = await essence(whole);
    expect(expected).toHaveLength(20);

    const out = folder.at('killed');
    let kills = 0;
    for (const after of [1, 7, 14]) {
      const killed = await startAndSignal([...common, '--out', out, '--resume'], out, { after, signal: 'SIGKILL' });
      if (killed.signal === 'SIGKILL') kills += 1;
    }
    expect(kills).toBeGreaterThan(0);
    expect(existsSync(`${out}/adapter_model.safetensors`)).toBe(false);
    const resumed = await start([...common, '--out', out, '--resume']).ended;
    expect(resumed.err).toMatch(/resumed after step \d+/);
    expect(resumed.code).toBe(0);
    expect(await adapterIn(out)).toEqual(await adapterIn(whole));
    expect(await essence(out)).toEqual(expected);
  });

  it('writes a checkpoint at Ctrl-C, ends with 1 and one object, and goes on with --resume', { timeout: 300_000 }, async () => {
    const out = folder.at('interrupted');
    // Without checkpoints of its own until the end: only Ctrl-C writes one.
    const args = [...common, '--out', out, '--checkpoint-every', '1000'];
    const stopped = await startAndSignal(args, out, { after: 3, signal: 'SIGINT' });
    expect(stopped.code).toBe(1);
    expect(JSON.parse(stopped.out)).toMatchObject({ error: { name: 'AbortError' } });
    expect(existsSync(`${out}/adapter_model.safetensors`)).toBe(false);
    const resumed = await start([...args, '--resume']).ended;
    expect(resumed.code).toBe(0);
    expect(await adapterIn(out)).toEqual(await adapterIn(folder.at('whole')));
    expect(await essence(out)).toEqual(await essence(folder.at('whole')));
  });

  it('says with its exit code how it went, and nothing else on stdout', { timeout: 120_000 }, async () => {
    const usage = await start(['eval', '--modl', 'x']).ended;
    expect([usage.code, usage.out]).toEqual([2, '']);
    const failure = await start(['inspect', '--model', folder.at('nowhere'), '--device', 'cpu']).ended;
    expect([failure.code, failure.out]).toEqual([1, '']);
    const fine = await start(['inspect', '--model', folder.at('model'), '--device', 'cpu', '--json']).ended;
    expect(fine.code).toBe(0);
    expect(JSON.parse(fine.out)).toMatchObject({ family: 'llama' });
    await rm(folder.at('whole'), { recursive: true });
  });
});
