import { describe, expect, it } from 'vitest';
import { hasShared, sharedBytes, sharedJson, sharedPath } from '../../testing/src/shared.ts';
import { load, memoryFolderSink } from '@niwaki/hub';
import { memory, withAdapters } from '@niwaki/tensor';
import { mergeAdapter, mergeAndUnload, saveAdapter, unmergeAdapter } from '@niwaki/peft';
import { loadAdapter } from './verbs.ts';
import { ggufTwin } from '../../hub/test/twins.ts';
import type { LoraAdapter } from '../src/lora-adapter.ts';
import { distance, goldenModel, logitsOf, type GoldenIo } from './golden.ts';

/** The reference's own merge error is 3e-6; its files were made on another machine in f32. */
const tolerance = 1e-4;

const names = [
  'lora',
  'lora-rslora',
  'lora-dora',
  'lora-patterns',
  'lora-bias',
  'lora-bias-only',
  'lora-embed',
  'lora-embed-dora',
  'lora-layers-to-transform',
  'lora-modules-to-save',
  'lora-trainable-tokens',
  'ia3',
  'ia3-bias',
  'ln-tuning',
];

describe.skipIf(!hasShared)('an adapter that Python wrote', () => {
  describe.each(names)('%s', (name) => {
    const path = `adapters/${name}`;
    const io = hasShared ? sharedJson<GoldenIo>(`golden/${path}/io.json`) : undefined!;

    it('gives the logits Python gives, and the base again without it', async () => {
      const before = memory().numTensors;
      const model = await goldenModel(io.base_model);
      const base = await logitsOf(model, io.input_ids);
      await loadAdapter(model, sharedPath(`golden/${path}`));
      expect(distance(await logitsOf(model, io.input_ids), io.logits)).toBeLessThan(tolerance);
      expect(distance(base, io.logits)).toBeGreaterThan(0.1);
      expect(await logitsOf(model, io.input_ids, withAdapters('none'))).toEqual(base);
      model.dispose();
      expect(memory().numTensors).toBe(before);
    });

    it('gives the same logits merged, and the base bit for bit after unmerging', async () => {
      const before = memory().numTensors;
      const model = await goldenModel(io.base_model);
      const base = await logitsOf(model, io.input_ids);
      await loadAdapter(model, sharedPath(`golden/${path}`));
      const report = await mergeAdapter(model);
      expect(report.merged).toEqual(['default']);
      expect(model.active).toEqual([]);
      expect(distance(await logitsOf(model, io.input_ids), io.logits)).toBeLessThan(tolerance);
      await unmergeAdapter(model);
      expect(model.active).toEqual(['default']);
      expect(distance(await logitsOf(model, io.input_ids), io.logits)).toBeLessThan(tolerance);
      expect(await logitsOf(model, io.input_ids, withAdapters('none'))).toEqual(base);
      await mergeAndUnload(model);
      expect(model.adapters.size).toBe(0);
      expect(distance(await logitsOf(model, io.input_ids), io.logits)).toBeLessThan(tolerance);
      model.dispose();
      expect(memory().numTensors).toBe(before);
    });

    it('is saved again byte for byte, with an equal config', async () => {
      const model = await goldenModel(io.base_model);
      const set = await loadAdapter(model, sharedPath(`golden/${path}`), { name: 'another' });
      expect(set.warnings).toEqual([]);
      const sink = memoryFolderSink();
      await saveAdapter(set, sink);
      const { files } = sink;
      expect(JSON.parse(new TextDecoder().decode(files.get('adapter_config.json')))).toEqual(
        sharedJson(`golden/${path}/adapter_config.json`),
      );
      expect(Buffer.compare(files.get('adapter_model.safetensors')!, sharedBytes(`golden/${path}/adapter_model.safetensors`))).toBe(0);
      model.dispose();
    });
  });

  it('has the ranks and alphas of its patterns: the first that matches, at the end of the path', async () => {
    const model = await goldenModel('models/llama');
    const { sites } = await loadAdapter(model, sharedPath('golden/adapters/lora-patterns'));
    const found = Object.fromEntries(
      [...sites].map(([path, adapter]) => {
        const { rank, scale } = adapter as LoraAdapter;
        return [path.replace('model.layers.', '').replace('.self_attn', ''), [rank, scale * rank]];
      }),
    );
    const usual = { q_proj: [2, 6], k_proj: [4, 6], v_proj: [4, 6], o_proj: [4, 6] };
    const expected = [0, 1].flatMap((layer) => Object.entries(usual).map(([name, both]) => [`${layer}.${name}`, both] as const));
    expect(found).toEqual({ ...Object.fromEntries(expected), '0.v_proj': [4, 12], '1.k_proj': [1, 6] });
    model.dispose();
  });

  it.each(['lora-patterns', 'lora-modules-to-save'])(
    'gives the logits Python gives over a GGUF of the model, whose rows of q and k lie otherwise: %s',
    async (name) => {
      const before = memory().numTensors;
      const io = sharedJson<GoldenIo>(`golden/adapters/${name}/io.json`);
      const folder = `golden/${io.base_model}`;
      const twin = await ggufTwin(sharedBytes(`${folder}/model.safetensors`), sharedJson(`${folder}/config.json`));
      const { model } = await load(twin);
      await loadAdapter(model, sharedPath(`golden/adapters/${name}`));
      expect(distance(await logitsOf(model, io.input_ids), io.logits)).toBeLessThan(tolerance);
      await mergeAdapter(model);
      expect(distance(await logitsOf(model, io.input_ids), io.logits)).toBeLessThan(tolerance);
      model.dispose();
      expect(memory().numTensors).toBe(before);
    },
  );
});
