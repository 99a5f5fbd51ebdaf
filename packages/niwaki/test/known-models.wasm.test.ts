import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { memoryFolderSink } from '@niwaki/hub';
import { memory } from '@niwaki/tensor';
import {
  AbortError,
  adapt,
  evaluateText,
  knownModels,
  load,
  lora,
  mergeAndUnload,
  nf4,
  quantize,
  recipeKit,
  saveAdapter,
  saveModel,
  saveQuantized,
  type FolderSink,
} from '../src/index.ts';

const text = 'It was a dark and stormy night, and the sea was high.';

describe('the embedded model', () => {
  it('has all its files where Node finds them', () => {
    for (const files of knownModels.values()) for (const address of Object.values(files)) expect(existsSync(address)).toBe(true);
  });

  it('loads by its name, predicts text better than chance, and leaves nothing behind', async () => {
    const before = memory().numTensors;
    const { model, tokenizer, warnings } = await load('niwaki-tiny');
    expect(warnings).toEqual([]);
    expect(model.info.family).toBe('llama');
    const { nll } = await evaluateText(model, tokenizer!, text);
    expect(nll).toBeLessThan(Math.log(model.info.vocabularySize) - 1);
    model.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('gives the same numbers after it was quantized, saved and loaded again', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'niwaki-'));
    try {
      const first = await load('niwaki-tiny');
      await quantize(first.model, nf4({ doubleQuant: true }));
      const expected = await evaluateText(first.model, first.tokenizer!, text);
      await saveQuantized(first.model, folder, { tokenizer: first.tokenizer! });
      first.model.dispose();
      const second = await load(folder);
      expect(second.model.sites('all-linear').every(({ weight }) => weight!.kind === 'codebook4')).toBe(true);
      expect(await evaluateText(second.model, second.tokenizer!, text)).toEqual(expected);
      second.model.dispose();
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it('is not half saved where the signal fires on the way', async () => {
    const { model, tokenizer } = await load('niwaki-tiny');
    await quantize(model, nf4());
    const files = new Map([['config.json', new Uint8Array(1)]]);
    const controller = new AbortController();
    const inner = memoryFolderSink(files);
    const sink: FolderSink = {
      ...inner,
      create: (file) => {
        if (file === 'config.json') controller.abort();
        return inner.create(file);
      },
    };
    await expect(saveQuantized(model, sink, { tokenizer: tokenizer!, signal: controller.signal })).rejects.toThrow(AbortError);
    expect([...files]).toEqual([['config.json', new Uint8Array(1)]]);
    model.dispose();
  });

  it('has no quantized form where nothing is quantized', async () => {
    const { model } = await load('niwaki-tiny');
    const sink = { name: 'nowhere', create: async () => Promise.reject(new Error('nothing may be written')) };
    await expect(saveQuantized(model, sink)).rejects.toThrow(/no matrix of the model is stored in a format/);
    model.dispose();
  });
});

describe('the verbs together', () => {
  it.each(['lora', 'dora', 'ia3'])('a recipe may name %s', async (kind) => {
    const { model } = await load('niwaki-tiny');
    const set = await recipeKit.adaptModel(model, recipeKit.adapt[kind]!({}), { at: 'down_proj', seed: 1 });
    expect(set.sites.size).toBe(6);
    model.dispose();
  });

  it('adapt, save, merge and save give one model', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'niwaki-'));
    try {
      const { model, tokenizer } = await load('niwaki-tiny');
      const set = await adapt(model, lora({ rank: 2, alpha: 4, init: false }), { at: ['q_proj'], seed: 4 });
      const adapted = await evaluateText(model, tokenizer!, text);
      await saveAdapter(set, join(folder, 'adapter'));
      await mergeAndUnload(model);
      await saveModel(model, join(folder, 'merged'), { tokenizer: tokenizer! });
      model.dispose();
      const again = await load(join(folder, 'merged'));
      // f32 sums in another order.
      expect(Math.abs((await evaluateText(again.model, again.tokenizer!, text)).nll - adapted.nll)).toBeLessThan(1e-4);
      again.model.dispose();
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});
