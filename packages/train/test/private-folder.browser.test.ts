import { init } from '../../backend/src/index.ts';
import { memory, tensor1d } from '@niwaki/tensor';
import { beforeAll, expect, it } from 'vitest';
import { checkpointNames, loadCheckpoint, privateFolder, saveCheckpoint, type RunState } from '../src/index.ts';

beforeAll(() => init({ device: 'cpu' }));

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const text = (content: Uint8Array | undefined): string | undefined => content && new TextDecoder().decode(content);
const state = (attempt: number): RunState => ({
  attempt,
  updates: attempt,
  refused: { total: 0, running: 0 },
  cursor: { epoch: 0, step: attempt },
  tokens: 0,
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

it('reads, writes, appends, renames and removes, in folders of folders', async () => {
  const folder = await privateFolder(crypto.randomUUID());
  expect(await folder.list()).toEqual([]);
  expect(await folder.read('a/b.txt')).toBeUndefined();
  await folder.remove('a/b.txt');
  await folder.write('a/b.txt', bytes('one'));
  await folder.append('a/b.txt', bytes(' two'));
  expect(text(await folder.read('a/b.txt'))).toBe('one two');
  const inner = folder.inside('a');
  expect(await inner.list()).toEqual(['b.txt']);
  await inner.inside('deep').write('c.txt', bytes('c'));
  expect(text(await folder.read('a/deep/c.txt'))).toBe('c');
  await folder.rename('a/deep', 'z');
  expect(text(await folder.read('z/c.txt'))).toBe('c');
  expect(await inner.list()).toEqual(['b.txt']);
  await folder.write('a/b.txt', bytes('new'));
  expect(text(await inner.read('b.txt'))).toBe('new');
  await folder.remove('a');
  expect(await folder.list()).toEqual(['z']);
});

it('takes a file in pieces, which is there at its end or not at all', async () => {
  const folder = (await privateFolder(crypto.randomUUID())).inside('base');
  const sink = await folder.sink!('a.bin');
  for (const piece of ['one', ' two']) await sink.write(bytes(piece));
  expect((await folder.read('a.bin'))?.length ?? 0).toBe(0);
  await sink.commit();
  expect(text(await folder.read('a.bin'))).toBe('one two');
  const second = await folder.sink!('a.bin');
  await second.write(bytes('three'));
  await second.abandon();
  expect(text(await folder.read('a.bin'))).toBe('one two');
});

it('keeps checkpoints, and takes one that was not finished for none', async () => {
  const folder = (await privateFolder(crypto.randomUUID())).inside('checkpoints');
  const value = tensor1d([-0, 1e-42, 0.1]);
  const parameters = new Map([['p', value]]);
  for (const attempt of [1, 2, 3])
    await saveCheckpoint(folder, { state: state(attempt), parameters, optimizer: new Map([['p', { m: value }]]) }, { keep: 2 });
  expect(await checkpointNames(folder)).toEqual(['checkpoint-00000002', 'checkpoint-00000003']);
  // A page closed while the files were copied.
  await folder.write('checkpoint-00000004/parameters.safetensors', bytes('…'));
  const before = memory().numTensors;
  const loaded = (await loadCheckpoint(folder))!;
  expect(loaded.state.attempt).toBe(3);
  expect([...new Uint32Array((await loaded.parameters.get('p')!.data()).slice().buffer)]).toEqual([
    ...new Uint32Array((await value.data()).slice().buffer),
  ]);
  // The parameter; the state is in host memory.
  expect(memory().numTensors - before).toBe(1);
});
