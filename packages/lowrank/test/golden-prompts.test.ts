import { describe, expect, it } from 'vitest';
import { hasShared, sharedBytes, sharedJson, sharedPath } from '../../testing/src/shared.ts';
import { memoryFolderSink } from '@niwaki/hub';
import { memory, tensor2d, withAdapters } from '@niwaki/tensor';
import { forward } from '@niwaki/nn';
import { mergeAdapter, saveAdapter } from '@niwaki/peft';
import { loadAdapter } from './verbs.ts';
import { distance, goldenModel, logitsOf, type GoldenIo } from './golden.ts';

/** Their files were made on another machine in f32. */
const tolerance = 1e-4;

const names = ['prefix-tuning', 'prefix-tuning-proj', 'prompt-tuning', 'p-tuning'];

describe.skipIf(!hasShared)('rows before the tokens that Python trained', () => {
  describe.each(names)('%s', (name) => {
    const path = `adapters/${name}`;
    const io = hasShared ? sharedJson<GoldenIo>(`golden/${path}/io.json`) : undefined!;

    it('gives the logits Python gives for the tokens, and the base again without it', async () => {
      const before = memory().numTensors;
      const model = await goldenModel(io.base_model);
      const base = await logitsOf(model, io.input_ids);
      await loadAdapter(model, sharedPath(`golden/${path}`));
      // Python's logits begin with those of a prompt's own rows, which nothing here gives out.
      const expected = io.logits.slice(-base.length);
      expect(distance(await logitsOf(model, io.input_ids), expected)).toBeLessThan(tolerance);
      expect(distance(base, expected)).toBeGreaterThan(0.1);
      expect(await logitsOf(model, io.input_ids, withAdapters('none'))).toEqual(base);
      await expect(mergeAdapter(model)).rejects.toThrow(/\(merge\)/);
      model.dispose();
      expect(memory().numTensors).toBe(before);
    });

    it('is saved again byte for byte, with an equal config', async () => {
      const model = await goldenModel(io.base_model);
      const set = await loadAdapter(model, sharedPath(`golden/${path}`), { name: 'another' });
      expect(set.warnings).toEqual([]);
      const sink = memoryFolderSink();
      await saveAdapter(set, sink);
      expect(JSON.parse(new TextDecoder().decode(sink.files.get('adapter_config.json')))).toEqual(
        sharedJson(`golden/${path}/adapter_config.json`),
      );
      const bytes = sink.files.get('adapter_model.safetensors')!;
      expect(Buffer.compare(bytes, sharedBytes(`golden/${path}/adapter_model.safetensors`))).toBe(0);
      model.dispose();
    });
  });

  it('are off by more than a logit where the tokens do not count their positions from behind a prefix', async () => {
    const path = 'adapters/prefix-tuning';
    const io = sharedJson<GoldenIo>(`golden/${path}/io.json`);
    const model = await goldenModel(io.base_model);
    const set = await loadAdapter(model, sharedPath(`golden/${path}`));
    const [adapter] = [...set.sites.values()];
    const [batch, time] = [io.input_ids.length, io.input_ids[0]!.length];
    const tokenIds = tensor2d(io.input_ids.flat(), [batch, time], 'int32');
    const logitsFrom = async (first: number): Promise<Float32Array> => {
      const positions = tensor2d(
        Array.from({ length: batch * time }, (_, i) => first + (i % time)),
        [batch, time],
        'int32',
      );
      const logits = forward(model, { tokenIds, positions });
      const values = (await logits.data()) as Float32Array;
      logits.dispose();
      positions.dispose();
      return values;
    };
    expect(distance(await logitsFrom(0), io.logits)).toBeLessThan(tolerance);
    expect(distance(await logitsFrom(-adapter!.prefix!.count), io.logits)).toBeGreaterThan(1);
    tokenIds.dispose();
    model.dispose();
  });
});
