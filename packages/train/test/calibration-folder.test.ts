import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { applyMethod, disposeBatch, type Calibrate, type Method } from '@niwaki/engine';
import { tokenBatch, type Model, type TokenBatch } from '@niwaki/nn';
import { AbortError, FormatError, memory } from '@niwaki/tensor';
import { bytesOf } from '../../testing/src/contract-model.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { awq, cbq, gptq } from '../../quant/src/index.ts';
import { wanda } from '../../sparse/src/index.ts';
import { calibrationFolder, CheckpointError, memoryFolder, type RunFolder } from '../src/index.ts';

let batches: TokenBatch[];
let tensors: number;
beforeEach(() => {
  tensors = memory().numTensors;
  batches = [
    [1, 2, 3, 4, 5, 6],
    [9, 8, 7, 6, 5, 4],
  ].map((row) => tokenBatch([row], { vocabularySize: 32 }));
});
afterEach(() => {
  batches.forEach(disposeBatch);
  const left = memory().numTensors - tensors;
  if (left !== 0) throw new Error(`${left} tensors are left of a test`);
});

const fitted = { bits: 2, groupSize: 8, epochs: 1 } as const;

/** Walks over three blocks; stopped after a window where that is told. @returns contents, or undefined where it was stopped */
async function walked(
  method: Method,
  calibrate: Omit<Calibrate, 'batches'>,
  { after, at = 'all-linear' }: { readonly after?: number; readonly at?: string } = {},
): Promise<Map<string, string> | undefined> {
  const model: Model = await tinyLlama({ num_hidden_layers: 3 });
  const stop = new AbortController();
  const onBlock: Calibrate['onBlock'] = ({ done }) => {
    if (done === after) stop.abort();
  };
  try {
    await applyMethod(model, method, { at, signal: stop.signal, calibrate: { batches, onBlock, ...calibrate } });
    return await bytesOf(model.parameters().values());
  } catch (error) {
    if (!(error instanceof AbortError)) throw error;
    return undefined;
  } finally {
    model.dispose();
  }
}

const methods: Readonly<Record<string, () => Method>> = {
  cbq: () => cbq(fitted),
  gptq: () => gptq({ groupSize: 8 }),
  'awq, folded': () => awq({ groupSize: 8, fold: true }),
  'wanda in groups': () => wanda({ n: 2, m: 4, store: 'n-of-m' }),
};

describe('a folder of what windows left', () => {
  it.each(Object.entries(methods))('gives a walk that was stopped the end of one that was not: %s', async (_, make) => {
    const whole = await walked(make(), {});
    const folder = memoryFolder();
    expect(await walked(make(), { checkpoint: calibrationFolder(folder) }, { after: 1 })).toBeUndefined();
    const given = await walked(make(), { checkpoint: calibrationFolder(folder, { resume: true }) });
    expect([...whole!.keys()].filter((path) => whole!.get(path) !== given!.get(path))).toEqual([]);
    expect([...given!.keys()]).toEqual([...whole!.keys()]);
  });

  it('holds a file a window, and what stands in of the last one alone', async () => {
    const folder = memoryFolder();
    await walked(cbq(fitted), { checkpoint: calibrationFolder(folder) }, { after: 1 });
    expect([...(await folder.list())].sort()).toEqual(['lent-00000.safetensors', 'walk.json', 'window-00000.safetensors']);
    await walked(cbq(fitted), { checkpoint: calibrationFolder(folder, { resume: true }) });
    expect([...(await folder.list())].sort()).toEqual(['walk.json', 'window-00000.safetensors', 'window-00001.safetensors']);
  });

  it('refuses another walk, and names what differs', async () => {
    const folder = memoryFolder('kept');
    await walked(gptq({ groupSize: 8 }), { checkpoint: calibrationFolder(folder) }, { after: 1 });
    const resumed = (method: Method, at?: string): Promise<unknown> =>
      walked(method, { checkpoint: calibrationFolder(folder, { resume: true }) }, at === undefined ? {} : { at });
    await expect(resumed(gptq({ groupSize: 8, bits: 3 }))).rejects.toThrow(
      /kept holds another walk: method was .*"bits":4.*, is .*"bits":3/,
    );
    await expect(resumed(gptq({ groupSize: 8 }), 'down_proj')).rejects.toThrow(/sites was/);
    disposeBatch(batches[0]!);
    batches[0] = tokenBatch([[1, 2, 3, 4, 5, 7]], { vocabularySize: 32 });
    await expect(resumed(gptq({ groupSize: 8 }))).rejects.toThrow(/calibration was/);
  });

  it('is not taken by a new walk while one is unfinished, and is afterwards', async () => {
    const folder = memoryFolder('kept');
    await walked(gptq({ groupSize: 8 }), { checkpoint: calibrationFolder(folder) }, { after: 2 });
    const anew = (): Promise<unknown> => walked(gptq({ groupSize: 8 }), { checkpoint: calibrationFolder(folder) });
    await expect(anew()).rejects.toThrow(CheckpointError);
    await expect(anew()).rejects.toMatchObject({ message: expect.stringMatching(/stopped after window 2 of 3/) as string });
    const whole = await walked(gptq({ groupSize: 8 }), { checkpoint: calibrationFolder(folder, { resume: true }) });
    expect(await anew()).toEqual(whole);
    await walked(wanda(), { checkpoint: calibrationFolder(folder) });
    expect(JSON.parse(new TextDecoder().decode(await folder.read('walk.json')))).toMatchObject({ done: 3, walk: { windows: 3 } });
  });

  it('says which file is missing, cut or not its own, and leaves the model as it was', async () => {
    const folder = memoryFolder('kept');
    await walked(gptq({ groupSize: 8 }), { checkpoint: calibrationFolder(folder) }, { after: 1 });
    const resumed = (from: RunFolder): Promise<unknown> =>
      walked(gptq({ groupSize: 8 }), { checkpoint: calibrationFolder(from, { resume: true }) });
    const name = 'window-00000.safetensors';
    const file = (await folder.read(name))!;
    await folder.remove(name);
    await expect(resumed(folder)).rejects.toThrow(/kept\/window-00000.safetensors: it is missing/);
    await folder.write(name, file.slice(0, file.length - 8));
    await expect(resumed(folder)).rejects.toThrow(FormatError);
    await folder.write('walk.json', new TextEncoder().encode('{"version":2}'));
    await expect(resumed(folder)).rejects.toThrow(/walk.json: it is not what a walk writes/);
  });

  it('that cannot be written stops the walk, and says what to do', async () => {
    const full: RunFolder = {
      ...memoryFolder('full'),
      write: async (path) => {
        if (path !== 'walk.json') throw new Error('no space left');
      },
    };
    await expect(walked(gptq({ groupSize: 8 }), { checkpoint: calibrationFolder(full) })).rejects.toThrow(
      /window 1 could not be written to full: no space left/,
    );
  });

  it('goes without a block to go on from', async () => {
    const checkpoint = calibrationFolder(memoryFolder());
    await expect(walked(gptq({ groupSize: 8 }), { checkpoint, from: 'model.layers.1' })).rejects.toThrow(/Leave `from` away/);
  });
});
