import { describe, expect, it } from 'vitest';
import { filesFolder, load, memoryFolderSink, saveModel } from '@niwaki/hub';
import {
  ConfigError,
  denseParameter,
  memory,
  NotFoundError,
  NumericError,
  StateError,
  tensor1d,
  tensor2d,
  withAdapters,
  type GgufFormat,
  type Tensor2D,
} from '@niwaki/tensor';
import { denseWeight, encodeGgufBlocks, ggufBlock, rowsOf, type GgufEncoded } from '@niwaki/weights';
import type { Model, Site } from '@niwaki/nn';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { lora, type LoraOptions } from '../src/index.ts';
import {
  activateAdapters,
  adapt,
  deleteAdapter,
  mergeAdapter,
  mergeAndUnload,
  mergedAdapters,
  type PeftSet,
  unmergeAdapter,
} from '@niwaki/peft';
import { loadAdapter } from './verbs.ts';
import { loraLinear } from '../src/lora-linear.ts';
import { mergedSite, roundedTo } from '../../peft/src/merge-site.ts';
import { distance, logitsOf } from './golden.ts';
import { baseBytes, filesOf, onTiny, perturb, rejection, rows } from './support.ts';

/** f32 sums in another order. */
const tolerance = 1e-5;

async function perturbed(
  model: Model,
  options: LoraOptions,
  at: string | string[],
  { name = 'default', size = 0.2 } = {},
): Promise<PeftSet> {
  const set = await adapt(model, lora({ rank: 2, alpha: 6, ...options }), { at, name });
  perturb(set, { size, seed: name.length * 7 + String(at).length });
  return set;
}

describe('merging', () => {
  it.each<[string, LoraOptions, string[]]>([
    ['LoRA', { dropout: 0.3 }, ['q_proj', 'down_proj']],
    ['rsLoRA', { rslora: true }, ['q_proj', 'v_proj']],
    ['DoRA', { dora: true, dropout: 0.3 }, ['q_proj', 'down_proj']],
    ['embedding and head', {}, ['embed_tokens', 'lm_head']],
    ['DoRA of embedding and head', { dora: true }, ['embed_tokens', 'lm_head']],
    ['whole modules and norms', { modulesToSave: ['lm_head', 'norm', 'post_attention_layernorm'] }, ['q_proj']],
    ['token rows', { trainableTokens: [2, 5] }, ['q_proj']],
  ])('gives the unmerged outputs, and the base bit for bit afterwards: %s', async (_, options, at) => {
    expect(
      await onTiny(async (model) => {
        const [base, bytes] = [await logitsOf(model, rows), await baseBytes(model)];
        const set = await perturbed(model, options, at);
        for (const parameter of set.replaced.values()) parameter.write(tensor2dLike(parameter.shape, 0.3));
        const unmerged = await logitsOf(model, rows);
        const steady = memory().numTensors;
        for (let cycle = 0; cycle < 5; cycle++) {
          const report = await mergeAdapter(model);
          expect(report.warnings).toEqual([]);
          expect(report.sites.every(({ maxError, relativeError, changeError }) => maxError + relativeError + changeError === 0)).toBe(true);
          expect(mergedAdapters(model)).toEqual(['default']);
          expect(distance(await logitsOf(model, rows), unmerged)).toBeLessThan(tolerance);
          await unmergeAdapter(model);
        }
        expect(memory().numTensors).toBe(steady);
        expect(await baseBytes(model)).toEqual(bytes);
        expect(await logitsOf(model, rows)).toEqual(unmerged);
        expect(await logitsOf(model, rows, withAdapters('none'))).toEqual(base);
      }),
    ).toBe(0);
  });

  it('of what is merged changes nothing and says so; of what is not there, or of nothing, is an error', async () => {
    await onTiny(async (model) => {
      expect(await rejection(mergeAdapter(model))).toBeInstanceOf(NotFoundError);
      await perturbed(model, {}, 'q_proj');
      await mergeAdapter(model);
      const [merged, bytes] = [await logitsOf(model, rows), await baseBytes(model)];
      const report = await mergeAdapter(model, 'default');
      expect(report.warnings.map(({ kind, names }) => [kind, names])).toEqual([['already-merged', ['default']]]);
      expect(report.merged).toEqual(['default']);
      expect(await baseBytes(model)).toEqual(bytes);
      expect(await logitsOf(model, rows)).toEqual(merged);
      expect(await rejection(mergeAdapter(model, 'absent'))).toBeInstanceOf(NotFoundError);
      expect(await rejection(unmergeAdapter(model, 'absent'))).toBeInstanceOf(NotFoundError);
      expect(() => deleteAdapter(model, 'default')).toThrow(StateError);
      expect(() => activateAdapters(model, ['default'])).toThrow(StateError);
      expect(await rejection(adapt(model, lora({ rank: 1 }), { at: 'q_proj' }))).toBeInstanceOf(StateError);
      await unmergeAdapter(model);
    });
  });

  it('refuses NaN, and no site is changed', async () => {
    expect(
      await onTiny(async (model) => {
        const set = await perturbed(model, {}, ['q_proj', 'down_proj']);
        const last = [...set.sites.values()].at(-1)!;
        last.parameters['lora_B.weight']!.write(tensor2d(new Float32Array(32).fill(Number.NaN), [16, 2]));
        const [bytes, tensors] = [await baseBytes(model), memory().numTensors];
        const error = await rejection(mergeAdapter(model));
        expect(error).toBeInstanceOf(NumericError);
        expect(error.details['path']).toBe('model.layers.1.mlp.down_proj.weight');
        expect(await baseBytes(model)).toEqual(bytes);
        expect(memory().numTensors).toBe(tensors);
        expect(mergedAdapters(model)).toEqual([]);
        expect(model.active).toEqual(['default']);
      }),
    ).toBe(0);
  });

  it('of two adapters equals both active, in either order, and one may leave', async () => {
    await onTiny(async (model) => {
      await perturbed(model, {}, ['q_proj', 'v_proj'], { name: 'a' });
      await perturbed(model, { rslora: true }, ['q_proj', 'down_proj'], { name: 'bb' });
      const base = await logitsOf(model, rows, withAdapters('none'));
      const alone = await logitsOf(model, rows, withAdapters(['bb']));
      const both = await logitsOf(model, rows, withAdapters(['a', 'bb']));
      activateAdapters(model, ['a', 'bb']);
      await mergeAdapter(model);
      expect(distance(await logitsOf(model, rows), both)).toBeLessThan(tolerance);
      await unmergeAdapter(model, 'a');
      expect(mergedAdapters(model)).toEqual(['bb']);
      expect(model.active).toEqual(['a']);
      expect(distance(await logitsOf(model, rows), both)).toBeLessThan(tolerance);
      expect(distance(await logitsOf(model, rows, withAdapters('none')), alone)).toBeLessThan(tolerance);
      await mergeAdapter(model, 'a');
      expect(mergedAdapters(model)).toEqual(['bb', 'a']);
      expect(distance(await logitsOf(model, rows), both)).toBeLessThan(tolerance);
      await unmergeAdapter(model);
      expect(await logitsOf(model, rows, withAdapters('none'))).toEqual(base);
      expect(model.active).toEqual(['a', 'bb']);
    });
  });

  it('of DoRA over another adapter follows the order they are active in', async () => {
    await onTiny(async (model) => {
      await perturbed(model, {}, 'q_proj', { name: 'plain' });
      await perturbed(model, { dora: true }, 'q_proj', { name: 'dora' });
      for (const order of [
        ['plain', 'dora'],
        ['dora', 'plain'],
      ]) {
        activateAdapters(model, order);
        const unmerged = await logitsOf(model, rows);
        await mergeAdapter(model);
        expect(distance(await logitsOf(model, rows), unmerged)).toBeLessThan(tolerance);
        await unmergeAdapter(model);
      }
    });
  });

  it('takes the strength of an adapter along', async () => {
    await onTiny(async (model) => {
      const set = await perturbed(model, {}, 'q_proj');
      for (const adapter of set.sites.values()) (adapter as unknown as { strength: number }).strength = -0.5;
      const unmerged = await logitsOf(model, rows);
      await mergeAdapter(model);
      expect(distance(await logitsOf(model, rows), unmerged)).toBeLessThan(tolerance);
      await unmergeAdapter(model);
    });
  });

  it('for good leaves a plain model that a plain loader reads, with the same logits', async () => {
    const before = memory().numTensors;
    const model = await tinyLlama();
    await perturbed(model, {}, 'q_proj', { name: 'a' });
    await perturbed(model, {}, 'v_proj', { name: 'b' });
    activateAdapters(model, ['a', 'b']);
    const unmerged = await logitsOf(model, rows);
    await mergeAndUnload(model);
    expect(model.adapters.size).toBe(0);
    expect(mergedAdapters(model)).toEqual([]);
    expect([...model.parameters().keys()].filter((path) => path.includes('lora'))).toEqual([]);
    const sink = memoryFolderSink();
    await saveModel(model, sink);
    model.dispose();
    const { model: plain } = await load(filesFolder(sink.files));
    expect(distance(await logitsOf(plain, rows), unmerged)).toBeLessThan(tolerance);
    plain.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('is freed with the model, originals and the sets taken off it too', async () => {
    const before = memory().numTensors;
    const model = await tinyLlama();
    await perturbed(model, {}, 'q_proj', { name: 'a' });
    await perturbed(model, { modulesToSave: ['norm'] }, 'v_proj', { name: 'b' });
    await mergeAdapter(model, 'a');
    await unmergeAdapter(model);
    await mergeAdapter(model, ['a', 'b']);
    model.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('with a row of sets per sample equals each set alone, and the base where none is named', async () => {
    await onTiny(async (model) => {
      await perturbed(model, {}, ['q_proj', 'embed_tokens'], { name: 'a' });
      await perturbed(model, { rslora: true }, 'down_proj', { name: 'b' });
      const three = [rows[0]!, rows[1]!, [9, 10, 11, 12]];
      const index = tensor1d([1, -1, 0], 'int32');
      const mixed = await logitsOf(model, three, withAdapters(index));
      const expected = await Promise.all(
        ([['b'], 'none', ['a']] as const).map((names, i) => logitsOf(model, [three[i]!], withAdapters(names))),
      );
      const size = mixed.length / 3;
      expected.forEach((logits, i) => expect(distance(mixed.subarray(i * size, (i + 1) * size), logits)).toBeLessThan(tolerance));
      index.dispose();
    });
  });
});

const tensor2dLike = (shape: readonly number[], seed: number): Tensor2D => {
  const values = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => 0.5 + 0.4 * Math.sin(i + seed));
  return (shape.length === 1 ? tensor1d(values) : tensor2d(values, shape as [number, number])) as Tensor2D;
};

describe('tied embeddings', () => {
  const tied = { tie_word_embeddings: true };

  it('part when an adapter changes one of them, and the saved config says so; they are tied again after unmerging', async () => {
    expect(
      await onTiny(async (model) => {
        const base = await logitsOf(model, rows);
        const set = await perturbed(model, { modulesToSave: ['embed_tokens'] }, ['q_proj', 'lm_head']);
        set.replaced.get('model.embed_tokens.weight')!.write(tensor2dLike([32, 16], 1));
        const unmerged = await logitsOf(model, rows);
        await mergeAdapter(model);
        expect(model.info.config['tie_word_embeddings']).toBe(false);
        const sink = memoryFolderSink();
        await saveModel(model, sink);
        const { model: plain } = await load(filesFolder(sink.files));
        expect(distance(await logitsOf(plain, rows), unmerged)).toBeLessThan(tolerance);
        plain.dispose();
        await unmergeAdapter(model);
        expect(model.info.config['tie_word_embeddings']).toBe(true);
        expect(await logitsOf(model, rows, withAdapters('none'))).toEqual(base);
        const [embedding, head] = model.sites(['embed_tokens', 'lm_head']) as [Site, Site];
        expect(embedding.weight).toBe(head.weight);
      }, tied),
    ).toBe(0);
  });

  it('stay one where trained token rows change both alike', async () => {
    await onTiny(async (model) => {
      await perturbed(model, { trainableTokens: [1, 6] }, 'q_proj');
      const unmerged = await logitsOf(model, rows);
      await mergeAdapter(model);
      expect(distance(await logitsOf(model, rows), unmerged)).toBeLessThan(tolerance);
      expect(model.info.config['tie_word_embeddings']).toBe(true);
      await unmergeAdapter(model);
    }, tied);
  });

  it('may be saved apart in one adapter and read back', async () => {
    await onTiny(async (model) => {
      const set = await perturbed(model, { modulesToSave: ['embed_tokens', 'lm_head'] }, 'q_proj');
      set.replaced.get('model.embed_tokens.weight')!.write(tensor2dLike([32, 16], 1));
      set.replaced.get('lm_head.weight')!.write(tensor2dLike([32, 16], 2));
      const [logits, files] = [await logitsOf(model, rows), await filesOf(set)];
      deleteAdapter(model, 'default');
      await loadAdapter(model, files);
      expect(await logitsOf(model, rows)).toEqual(logits);
      await mergeAdapter(model);
      expect(distance(await logitsOf(model, rows), logits)).toBeLessThan(tolerance);
      await unmergeAdapter(model);
    }, tied);
  });
});

describe('merging in low precision', () => {
  const one = async (w: number, a: number, b: number, alpha: number, dtype: 'f16' | 'bf16'): Promise<number> => {
    const weight = denseWeight(denseParameter('w', tensor2d([[w]]), { role: 'matrix' }));
    const site: Site = { path: 'w', point: 'linear', inputId: 'x', weight };
    const adapter = loraLinear(
      { path: 'w', point: 'linear', name: 'n', rank: 1, alpha, rslora: false, dropout: 0 },
      { a: tensor2d([[a]]), b: tensor2d([[b]]) },
    );
    const set = { name: 'n', method: { kind: 'lora', options: {} }, sites: new Map([['w', adapter]]), replaced: new Map(), base: '' };
    const { matrix } = await mergedSite(site, { weight, bias: undefined }, [set]);
    return (await (await roundedTo(matrix, dtype)).data())[0]!;
  };

  it('rounds once, at the end', async () => {
    expect(await one(1.003, 0.003, 1, 1, 'bf16')).toBe(1.0078125);
    // B·A alone is 75,000, more than a half can hold.
    expect(await one(1, 250, 300, 0.1, 'f16')).toBe(7500);
  });

  it('refuses values that the type cannot hold, and changes nothing', async () => {
    await onTiny(async (model) => {
      await perturbed(model, {}, 'q_proj', { size: 300 });
      const bytes = await baseBytes(model);
      expect(await rejection(mergeAdapter(model, 'default', { dtype: 'f16' }))).toBeInstanceOf(NumericError);
      expect(await baseBytes(model)).toEqual(bytes);
      expect(mergedAdapters(model)).toEqual([]);
    });
  });

  it('reports what the rounding cost', async () => {
    await onTiny(async (model) => {
      await perturbed(model, {}, 'q_proj');
      const { sites } = await mergeAdapter(model, 'default', { dtype: 'bf16' });
      expect(sites).toHaveLength(2);
      for (const site of sites) {
        expect(site.relativeError).toBeGreaterThan(1e-4);
        expect(site.relativeError).toBeLessThan(2 ** -8);
        expect(site.maxError).toBeGreaterThan(0);
        expect(site.changeError).toBeGreaterThan(site.relativeError);
      }
      await unmergeAdapter(model);
    });
  });
});

describe('a quantized base', () => {
  const wide = { hidden_size: 64, intermediate_size: 64, head_dim: 16 };
  async function quantized(model: Model, format: GgufEncoded & GgufFormat): Promise<void> {
    for (const site of model.sites('all-linear')) {
      const { weight, path } = site;
      model.replace(path, ggufBlock(path, weight!.shape, format, await encodeGgufBlocks(path, weight!.shape, rowsOf(weight!), format)));
    }
  }

  it.each<[GgufEncoded & GgufFormat, LoraOptions]>([
    ['Q4_0', {}],
    ['Q8_0', { dora: true }],
    ['BF16', {}],
  ])('%s starts at the base, and comes back bit for bit', async (format, options) => {
    expect(
      await onTiny(async (model) => {
        await quantized(model, format);
        const [base, bytes] = [await logitsOf(model, rows), await baseBytes(model)];
        const set = await adapt(model, lora({ rank: 4, ...options }), { at: 'all-linear' });
        expect(distance(await logitsOf(model, rows), base)).toBeLessThan(tolerance);
        perturb(set, { size: 0.1 });
        const unmerged = await logitsOf(model, rows);
        const dense = await mergeAdapter(model, 'default', { into: 'dense' });
        expect(dense.sites.every(({ kind, maxError }) => kind === 'dense' && maxError === 0)).toBe(true);
        expect(distance(await logitsOf(model, rows), unmerged)).toBeLessThan(1e-4);
        await unmergeAdapter(model);
        expect(await baseBytes(model)).toEqual(bytes);
        const same = await mergeAdapter(model, 'default', { into: 'requantize' });
        const bound = { Q4_0: 0.15, Q8_0: 0.01, BF16: 0.004 }[format as 'Q4_0'];
        for (const site of same.sites) {
          expect(site.kind).toBe('gguf');
          expect(site.relativeError).toBeGreaterThan(0);
          expect(site.relativeError).toBeLessThan(bound);
        }
        await unmergeAdapter(model);
        expect(await baseBytes(model)).toEqual(bytes);
        expect(await logitsOf(model, rows)).toEqual(unmerged);
      }, wide),
    ).toBe(0);
  });

  it('is refused unless the caller says what becomes of it; halves are rounded once', async () => {
    await onTiny(async (model) => {
      await quantized(model, 'Q4_0');
      await perturbed(model, {}, 'q_proj');
      const error = await rejection(mergeAdapter(model));
      expect(error).toBeInstanceOf(ConfigError);
      expect(error.message).toContain('requantize');
      expect(mergedAdapters(model)).toEqual([]);
    }, wide);
    await onTiny(async (model) => {
      await quantized(model, 'F16');
      await perturbed(model, {}, 'q_proj');
      const unmerged = await logitsOf(model, rows);
      const { sites } = await mergeAdapter(model);
      expect(sites.map(({ kind }) => kind)).toEqual(['gguf', 'gguf']);
      expect(distance(await logitsOf(model, rows), unmerged)).toBeLessThan(1e-2);
      await unmergeAdapter(model);
    }, wide);
  });
});
