import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { FormatError, memory, tensor, tensor1d, type RawTensor, type Tensor } from '@niwaki/tensor';
import { encodeSafetensors } from '@niwaki/hub';
import type { State } from '@niwaki/optim';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  CheckpointError,
  checkpointNames,
  loadCheckpoint,
  removeDrafts,
  saveCheckpoint,
  type RunState,
} from '../src/checkpoint/checkpoint.ts';
import { memoryFolder, type RunFolder } from '../src/checkpoint/run-folder.ts';
import { diskFolder } from '../src/checkpoint/disk-folder.ts';

const state = (attempt: number): RunState => ({
  attempt,
  updates: attempt,
  refused: { total: 0, running: 0 },
  cursor: { epoch: 0, step: attempt },
  tokens: 10 * attempt,
  run: {
    seed: '0',
    steps: 9,
    batchSize: 1,
    accumulate: 1,
    data: 'd',
    base: [{ kind: 'nf4', options: { blockSize: 64 }, at: 'all-linear' }],
    adapters: {},
    model: 'm',
    optimizer: { kind: 'o', parts: [{ kind: 'p', beta: 0.9 }] },
    participants: [],
    schedule: { kind: 's' },
    objective: { kind: 'c' },
    estimator: { kind: 'b' },
  },
});
const bits = (value: Tensor): number[] => [...new Uint32Array(value.dataSync().slice().buffer)];
const hostBits = ({ bytes }: RawTensor): number[] => [...new Uint32Array(bytes.slice().buffer)];

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'niwaki-'));
});
afterEach(() => rm(directory, { recursive: true, force: true }));

const kinds: readonly [string, () => RunFolder][] = [
  ['a directory', () => diskFolder(join(directory, 'not/there/yet'))],
  ['memory', () => memoryFolder()],
];

describe.each(kinds)('a checkpoint in %s', (_name, make) => {
  it('comes back bit for bit: -0, subnormals, int32, numbers that JSON has none for', async () => {
    const before = memory().numTensors;
    const folder = make();
    const value = tensor([-0, 1e-42, 0.1, 3e38], [2, 2]);
    const optimizer = new Map<string, State>([
      ['a.b', { first: tensor1d([1.5]), count: 7, rate: 0.1 }],
      ['c', { best: Infinity, codes: tensor1d([-1, 2 ** 31 - 1], 'int32') }],
    ]);
    const name = await saveCheckpoint(
      folder,
      { state: { ...state(3), recipe: { rank: 8 } }, parameters: new Map([['a.b', value]]), optimizer },
      { keep: 2 },
    );
    expect(name).toBe('checkpoint-00000003');
    const loaded = (await loadCheckpoint(folder))!;
    expect(loaded.state).toEqual({ ...state(3), recipe: { rank: 8 } });
    expect(bits(loaded.parameters.get('a.b')!)).toEqual(bits(value));
    expect(loaded.parameters.get('a.b')!.shape).toEqual([2, 2]);
    const first = loaded.optimizer.get('a.b')!;
    expect({ count: first['count'], rate: first['rate'] }).toEqual({ count: 7, rate: 0.1 });
    expect(hostBits(first['first'] as RawTensor)).toEqual(bits(tensor1d([1.5])));
    const second = loaded.optimizer.get('c')!;
    expect(second['best']).toBe(Infinity);
    const codes = second['codes'] as RawTensor;
    expect({ dtype: codes.dtype, shape: codes.shape }).toEqual({ dtype: 'I32', shape: [2] });
    expect([...new Int32Array(codes.bytes.slice().buffer)]).toEqual([-1, 2 ** 31 - 1]);
    // The parameter; 3 are made above and 1 in the line that compares: the state waits in host memory.
    expect(memory().numTensors - before).toBe(5);
  });

  it('is one of the newest `keep`', async () => {
    const folder = make();
    for (const attempt of [1, 2, 9, 10]) {
      await saveCheckpoint(folder, { state: state(attempt), parameters: new Map(), optimizer: new Map() }, { keep: 2 });
    }
    expect(await checkpointNames(folder)).toEqual(['checkpoint-00000009', 'checkpoint-00000010']);
    expect((await loadCheckpoint(folder))!.state.attempt).toBe(10);
  });

  it('is absent from an empty folder', async () => {
    expect(await loadCheckpoint(make())).toBeUndefined();
  });
});

it('a directory takes a file in pieces, which is there at its end or not at all', async () => {
  const folder = diskFolder(join(directory, 'not/there/yet'));
  const sink = await folder.sink!('deep/a.bin');
  for (const piece of [[1, 2], [3]]) await sink.write(Uint8Array.from(piece));
  expect(await folder.read('deep/a.bin')).toBeUndefined();
  await sink.commit();
  const second = await folder.sink!('deep/a.bin');
  await second.write(Uint8Array.of(4));
  await second.abandon();
  expect([...(await folder.read('deep/a.bin'))!]).toEqual([1, 2, 3]);
  expect(await folder.inside('deep').list()).toEqual(['a.bin']);
  expect(await folder.read('deep/a.bin/b')).toBeUndefined();
});

describe('a checkpoint that fails', () => {
  const parameters = new Map([['p', tensor1d([1, 2, 3])]]);

  /** A folder whose writes fail from the n-th on, as a full disk does. */
  const failing = (inner: RunFolder, from: number, operation: 'write' | 'rename'): RunFolder => {
    let calls = 0;
    return {
      ...inner,
      [operation]: async (a: string, b: never) => {
        if (++calls >= from) throw Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' });
        return inner[operation](a, b);
      },
    };
  };

  it.each([
    ['write', 1],
    ['write', 2],
    ['write', 3],
    ['rename', 1],
  ] as const)('leaves the one before untouched when %s number %i fails, and nothing else', async (operation, from) => {
    const folder = diskFolder(directory);
    await saveCheckpoint(folder, { state: state(1), parameters, optimizer: new Map() }, { keep: 1 });
    const saving = saveCheckpoint(failing(folder, from, operation), { state: state(2), parameters, optimizer: new Map() }, { keep: 1 });
    await expect(saving).rejects.toThrow(CheckpointError);
    await expect(saving).rejects.toThrow(/step 2 could not be written.*no space left/);
    expect(await readdir(directory)).toEqual(['checkpoint-00000001']);
    const loaded = (await loadCheckpoint(folder))!;
    expect(loaded.state.attempt).toBe(1);
    expect([...loaded.parameters.get('p')!.dataSync()]).toEqual([1, 2, 3]);
  });

  it('ignores and removes the draft of a killed process', async () => {
    const folder = diskFolder(directory);
    await folder.write('partial-checkpoint-00000005/parameters.safetensors', new Uint8Array(3));
    expect(await loadCheckpoint(folder)).toBeUndefined();
    await removeDrafts(folder);
    expect(await readdir(directory)).toEqual([]);
  });

  it.each([
    ['state.json', '{', /state\.json is not JSON/],
    ['state.json', '{"version":1}', /state\.json: version/],
    ['parameters.safetensors', 'xx', /parameters\.safetensors/],
  ])('says which file is broken: %s', async (file, content, message) => {
    const folder = memoryFolder();
    const name = await saveCheckpoint(folder, { state: state(1), parameters, optimizer: new Map() }, { keep: 1 });
    await folder.write(`${name}/${file}`, new TextEncoder().encode(content));
    await expect(loadCheckpoint(folder)).rejects.toThrow(FormatError);
    await expect(loadCheckpoint(folder)).rejects.toThrow(message);
  });

  it('keeps nothing of a file whose second tensor is of a type that it never has', async () => {
    const folder = memoryFolder();
    const name = await saveCheckpoint(folder, { state: state(1), parameters, optimizer: new Map() }, { keep: 1 });
    const tensors = new Map([
      ['a', { dtype: 'F32', shape: [1], bytes: new Uint8Array(4) }],
      ['b', { dtype: 'BF16', shape: [1], bytes: new Uint8Array(2) }],
    ]);
    await folder.write(`${name}/parameters.safetensors`, await encodeSafetensors(tensors));
    const before = memory().numTensors;
    await expect(loadCheckpoint(folder)).rejects.toThrow(/'b' is BF16/);
    expect(memory().numTensors).toBe(before);
  });

  it('says which file is missing', async () => {
    const folder = memoryFolder();
    const name = await saveCheckpoint(folder, { state: state(1), parameters, optimizer: new Map() }, { keep: 1 });
    await folder.remove(`${name}/optimizer.safetensors`);
    const before = memory().numTensors;
    await expect(loadCheckpoint(folder)).rejects.toThrow(/optimizer\.safetensors is missing/);
    expect(memory().numTensors).toBe(before);
  });
});
