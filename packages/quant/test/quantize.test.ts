import { describe, expect, it } from 'vitest';
import { AbortError, ConfigError, memory, NotFoundError, NumericError, tensor2d, tidy } from '@niwaki/tensor';
import { forward, initializeModel, type Model } from '@niwaki/nn';
import { defineMethod } from '@niwaki/engine';
import { weightBytes } from '@niwaki/weights';
import { fp4, nf4, quantize, rtn } from '../src/index.ts';
import { nf4 as alone } from '@niwaki/quant/nf4';

const config = {
  model_type: 'llama',
  vocab_size: 40,
  hidden_size: 32,
  intermediate_size: 48,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 32,
  rms_norm_eps: 1e-5,
  hidden_act: 'silu',
  rope_theta: 10000,
  tie_word_embeddings: false,
};
const build = (change: Record<string, unknown> = {}): Promise<Model> =>
  initializeModel({ ...config, ...change }, { seed: 1, trainable: false });

const kindOf = (model: Model, path: string): string | undefined => model.sites(path)[0]!.weight?.kind;

function logitsOf(model: Model): Float32Array {
  const logits = tidy(() => forward(model, { tokenIds: tensor2d([[1, 7, 3, 9, 30]], undefined, 'int32') }));
  const values = logits.dataSync() as Float32Array;
  logits.dispose();
  return values.slice();
}

describe('quantize', () => {
  it('takes every linear map by default, and neither the embedding nor the head', async () => {
    const model = await build();
    const before = logitsOf(model);
    const { sites, bytes } = await quantize(model, nf4());
    expect(sites).toHaveLength(14);
    expect(sites.every((path) => /\.(q|k|v|o|gate|up|down)_proj$/.test(path))).toBe(true);
    expect(kindOf(model, 'model.embed_tokens')).toBe('dense');
    expect(kindOf(model, 'lm_head')).toBe('dense');
    expect(bytes).toBe(model.sites([...sites]).reduce((sum, site) => sum + weightBytes(site.weight!), 0));
    const after = logitsOf(model);
    const difference = Math.sqrt(
      after.reduce((sum, value, i) => sum + (value - before[i]!) ** 2, 0) / before.reduce((sum, value) => sum + value ** 2, 0),
    );
    expect(difference).toBeGreaterThan(1e-4);
    expect(difference).toBeLessThan(0.2);
    model.dispose();
  });

  it('leaves as many tensors as the new weights have parts, and none when the model goes', async () => {
    const start = memory().numTensors;
    const model = await build();
    const before = memory().numTensors;
    await quantize(model, nf4({ doubleQuant: false }), { at: ['q_proj', 'v_proj'] });
    expect(memory().numTensors).toBe(before + 4 * 2);
    model.dispose();
    expect(memory().numTensors).toBe(start);
  });

  it('replaces a tied embedding and head once, and looks rows up in it', async () => {
    const model = await build({ tie_word_embeddings: true });
    const { sites } = await quantize(model, nf4({ blockSize: 32 }), { at: ['model.embed_tokens', 'lm_head'] });
    expect(sites).toHaveLength(1);
    expect(model.sites('lm_head')[0]!.weight).toBe(model.sites('model.embed_tokens')[0]!.weight);
    expect(logitsOf(model).every(Number.isFinite)).toBe(true);
    model.dispose();
  });

  it('leaves out what is excluded, and tells its progress', async () => {
    const model = await build();
    const seen: string[] = [];
    const { sites } = await quantize(model, fp4(), {
      exclude: 'layers.0.**',
      onProgress: ({ done, total, path }) => {
        seen.push(path);
        expect(done).toBe(seen.length);
        expect(total).toBe(7);
      },
    });
    expect(sites).toEqual(seen);
    expect(sites.every((path) => path.includes('layers.1.'))).toBe(true);
    model.dispose();
  });

  it('names the matrix that is not finite, and leaves the model as it was', async () => {
    const model = await build();
    const site = model.sites('layers.1.mlp.up_proj')[0]!;
    const parameter = site.weight!.matrix!;
    const values = parameter.read().dataSync().slice();
    values[5] = NaN;
    parameter.write(tensor2d(values, [48, 32]));
    const before = memory().numTensors;
    await expect(quantize(model, nf4())).rejects.toThrow(NumericError);
    await expect(quantize(model, nf4())).rejects.toThrow("'model.layers.1.mlp.up_proj.weight' holds NaN at [0,5]");
    expect(model.sites('all-linear').every(({ weight }) => weight!.kind === 'dense')).toBe(true);
    expect(memory().numTensors).toBe(before);
    model.dispose();
  });

  it.each([
    ['nf4', nf4()],
    ['rtn', rtn({ groupSize: 16 })],
  ])('refuses to round what codes stand for, before anything changes, unless it is asked to (%s)', async (_, method) => {
    const model = await build();
    await quantize(model, nf4(), { at: 'layers.1.**' });
    const kinds = (): string[] => model.sites('all-linear').map(({ weight }) => weight!.kind);
    const [before, tensors] = [kinds(), memory().numTensors];
    await expect(quantize(model, method)).rejects.toThrow(ConfigError);
    await expect(quantize(model, method)).rejects.toMatchObject({
      message: expect.stringContaining(`${method.kind} needs the numbers of a matrix themselves, not codes for them`),
      help: expect.stringContaining('`requantize: true`'),
      details: { path: 'model.layers.1.self_attn.q_proj' },
    });
    expect(kinds()).toEqual(before);
    expect(memory().numTensors).toBe(tensors);
    const { sites } = await quantize(model, method, { requantize: true });
    expect(sites).toHaveLength(14);
    expect(new Set(kinds()).size).toBe(1);
    model.dispose();
  });

  it('says what is near when nothing matches', async () => {
    const model = await build();
    await expect(quantize(model, nf4(), { at: 'q_porj' })).rejects.toThrow(NotFoundError);
    await expect(quantize(model, nf4(), { at: 'q_porj' })).rejects.toThrow(/q_proj/);
    model.dispose();
  });

  it('stops when it is told to, and takes back what it did', async () => {
    const model = await build();
    const stop = new AbortController();
    const work = quantize(model, nf4(), { signal: stop.signal, onProgress: ({ done }) => done === 3 && stop.abort() });
    await expect(work).rejects.toThrow(AbortError);
    expect(model.sites('all-linear').every(({ weight }) => weight!.kind === 'dense')).toBe(true);
    model.dispose();
  });

  it('takes methods that make weights only', async () => {
    const model = await build();
    const adapter = defineMethod({ kind: 'lora', options: {}, traits: {}, makes: 'adapter', make: async () => ({}) });
    await expect(quantize(model, adapter)).rejects.toThrow(ConfigError);
    model.dispose();
  });

  it('packs again to the same codes what is packed already, where it is asked to', async () => {
    const model = await build();
    await quantize(model, nf4({ doubleQuant: false }), { at: 'q_proj' });
    const once = logitsOf(model);
    await quantize(model, nf4({ doubleQuant: false }), { at: 'q_proj', requantize: true });
    expect([...logitsOf(model)]).toEqual([...once]);
    model.dispose();
  });
});

describe('a method', () => {
  it('is its own recipe', () => {
    expect(JSON.stringify(nf4())).toBe('{"kind":"nf4","options":{"blockSize":64,"doubleQuant":true,"dtype":"float32"}}');
    expect(JSON.stringify(fp4({ blockSize: 128, doubleQuant: false }))).toBe(
      '{"kind":"fp4","options":{"blockSize":128,"doubleQuant":false,"dtype":"float32"}}',
    );
  });

  it('can be imported alone', () => {
    expect(JSON.stringify(alone())).toBe(JSON.stringify(nf4()));
  });

  it.each([{ blockSize: 48 }, { blockSize: 16 }, { blockSize: 8192 }, { dtype: 'float8' as never }])('refuses %o', (options) => {
    expect(() => nf4(options)).toThrow(ConfigError);
  });
});
