/** What a real model costs a process of its own: loading it, and training over it, with the built packages. */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { file, inMb, missing, tell, textPath } from './support/smollm2.ts';

const repository = new URL('../../../', import.meta.url).pathname;
const cli = `${repository}packages/cli/dist/main.js`;
const niwaki = new URL('../../niwaki/dist/index.js', import.meta.url).href;

describe.skipIf(missing)('SmolLM2-135M-Instruct in a process of its own', () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'niwaki-'));
    // A wrong type is for the type check to report: files are written all the same.
    const built = await node([`${repository}node_modules/typescript/bin/tsc`, '-b', 'packages/cli']).catch(({ stdout }) => ({ stdout }));
    if (!existsSync(cli)) throw new Error(`the build left no ${cli}:\n${built.stdout}`);
  }, 300_000);
  afterAll(() => rm(folder, { recursive: true }));

  it('loads with little more than the packed model in memory', async () => {
    const runs: Record<string, number>[] = [];
    for (let run = 0; run < 3; run++) {
      const { stdout } = await node(['--expose-gc', new URL('support/load-peak.mjs', import.meta.url).pathname, niwaki, file!]);
      runs.push(JSON.parse(stdout) as Record<string, number>);
    }
    // Compiled code and buffers that nobody collected yet only ever add: the least of three is what loading needs.
    const { packed, tensors, live, heap, resident, milliseconds } = runs.reduce((least, run) =>
      run['live']! < least['live']! ? run : least,
    );
    tell(
      `SmolLM2 loaded in ${milliseconds!.toFixed(0)} ms: ${inMb(packed!)} packed; at their peak tensors ${inMb(tensors!)}, resident memory ` +
        `+${inMb(live!)} beside ${inMb(heap!)} of JavaScript heap (the tokenizer), +${inMb(resident!)} with all`,
    );
    expect(tensors! / packed!).toBeLessThan(1.01);
    // Resident memory while the last tensor's bytes are alive, without V8's heap and its garbage.
    expect(live! / packed!).toBeLessThan(1.3);
    expect(live! / packed!).toBeGreaterThan(0.9);
  });

  it('trains with the command line within 900 MB', async () => {
    const atExit = `process.on('exit', () => process.stderr.write('peak ' + process.resourceUsage().maxRSS * 1024));`;
    const out = join(folder, 'adapter');
    const args = ['finetune', '--model', file!, '--data', textPath(), '--context', '256', '--steps', '3', '--rank', '8'];
    const options = ['--learning-rate', '1e-3', '--device', 'wasm', '--threads', '1', '--out', out, '--json'];
    const { stdout, stderr } = await node(['--import', `data:text/javascript,${encodeURIComponent(atExit)}`, cli, ...args, ...options]);
    expect(JSON.parse(stdout)).toMatchObject({ out, steps: 3 });
    const lines = (await readFile(join(out, 'run.jsonl'), 'utf8')).trim().split('\n');
    const losses = lines.map((line) => (JSON.parse(line) as { loss: number }).loss);
    expect(losses).toHaveLength(3);
    expect(Math.max(...losses)).toBeLessThan(4.5);
    expect(existsSync(join(out, 'adapter_model.safetensors'))).toBe(true);
    const peak = Number(/peak (\d+)/.exec(stderr)![1]);
    tell(
      `niwaki finetune of SmolLM2, rank 8, 1 x 256: peak resident memory ${inMb(peak)}; losses ${losses.map((loss) => loss.toFixed(3)).join(' ')}`,
    );
    expect(peak).toBeLessThan(900e6);
    expect(peak).toBeGreaterThan(200e6);
  });
});

/** Runs node to its end; a failure says what was printed. */
const node = (args: readonly string[]): Promise<{ stdout: string; stderr: string }> =>
  promisify(execFile)(process.execPath, [...args], { cwd: repository });
