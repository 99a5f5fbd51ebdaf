import { describe, expect, it } from 'vitest';
import { denseParameter, FormatError, memory, NotFoundError, tensor, tensor2d, type Json } from '@niwaki/tensor';
import { createModel, forward, initializeModel, tokenBatch } from '@niwaki/nn';
import { disposeBatch } from '@niwaki/engine';
import { affine, denseWeight, disposeWeight, encodeAffine, rowsOfTensor, type TensorSource, type Weight } from '@niwaki/weights';
import { awq, awqFormat, formats, gptq, gptqFormat, quantize, rtn } from '../src/index.ts';
import { hasShared, sharedJson } from '../../testing/src/shared.ts';
import { sharedTensors, type SharedTensor } from '../../testing/src/shared-tensors.ts';

interface Entry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}
type Files = Map<string, Entry>;

const sourceOf = (tensors: Files): TensorSource => {
  const find = (name: string): Entry => {
    const found = tensors.get(name);
    if (found === undefined) throw new NotFoundError(`no tensor '${name}'`);
    return found;
  };
  return {
    names: () => [...tensors.keys()],
    info: (name) => ({ dtype: find(name).dtype, shape: find(name).shape, bytes: find(name).bytes.length }),
    read: async (name) => find(name),
  };
};

const golden = (folder: string): Map<string, SharedTensor> => sharedTensors(`golden/quant/${folder}/model.safetensors`);
const configOf = (folder: string): Json => sharedJson<Json>(`golden/quant/${folder}/config.json`);
const formatOf = (tensors: Files, path: string, config: Json): (typeof formats)[number] | undefined =>
  formats.find((format) => format.claims(new Set(tensors.keys()), path, config));

async function dense(weight: Weight): Promise<number[]> {
  const values = weight.dense();
  const host = [...(await values.data())];
  values.dispose();
  return host;
}

const furthest = (given: readonly number[], expected: readonly number[]): number => {
  expect(given).toHaveLength(expected.length);
  return Math.max(...given.map((value, i) => Math.abs(value - expected[i]!)));
};

interface Io {
  input_ids: number[][];
  logits: number[];
  dequantized: Record<string, number[]>;
}

const folders = [
  'gptq-2bit-asym',
  'gptq-3bit-sym',
  'gptq-4bit-sym',
  'gptq-4bit-asym-actorder',
  'gptq-8bit-sym',
  'gptq-v2-4bit-asym',
  'awq-gemm-4bit',
] as const;

describe.skipIf(!hasShared).each(folders)('the checkpoint %s', (folder) => {
  const io = hasShared ? sharedJson<Io>(`golden/quant/${folder}/io.json`) : ({} as Io);

  it('gives the dequantized matrix of the reference', async () => {
    const before = memory().numTensors;
    const tensors = golden(folder);
    const [path, expected] = Object.entries(io.dequantized)[0]!;
    const module = path.replace(/\.weight$/, '');
    const format = formatOf(tensors, module, configOf(folder))!;
    expect(format.name).toBe(folder.startsWith('awq') ? 'awq' : 'gptq');
    const weight = await format.read(module, sourceOf(tensors), configOf(folder));
    expect(furthest(await dense(weight), expected)).toBeLessThan(1e-6);
    disposeWeight(weight);
    expect(memory().numTensors).toBe(before);
  });

  it('gives the logits of the reference', async () => {
    const tensors = golden(folder);
    const config = configOf(folder);
    const floats = (path: string): SharedTensor | undefined => tensors.get(path);
    const model = await createModel({
      config: config as Record<string, unknown>,
      source: folder,
      weight: async (path, _, role) => {
        const module = path.replace(/\.weight$/, '');
        const format = formatOf(tensors, module, config);
        if (format !== undefined) return format.read(module, sourceOf(tensors), config);
        const value = floats(path);
        return value && denseWeight(denseParameter(path, tensor(value.values(), [...value.shape]), { role }));
      },
      vector: async (path, _, role) => {
        const value = floats(path);
        return value && denseParameter(path, tensor(value.values(), [...value.shape]), { role });
      },
    });
    const ids = tensor2d(io.input_ids, undefined, 'int32');
    const logits = forward(model, { tokenIds: ids });
    expect(furthest([...(await logits.data())], io.logits)).toBeLessThan(1e-4);
    for (const t of [ids, logits]) t.dispose();
    model.dispose();
  });

  if (folder.startsWith('awq')) {
    it('is written again with the bytes it has', async () => {
      const tensors = golden(folder);
      const paths = [...tensors.keys()].filter((name) => name.endsWith('.qweight')).map((name) => name.slice(0, -'.qweight'.length));
      const read = new Map<string, Weight>();
      for (const path of paths) read.set(path, await awqFormat.read(path, sourceOf(tensors), configOf(folder)));
      for (const [path, weight] of read) {
        for (const [name, { dtype, shape, bytes }] of (await awqFormat.write(weight, path))!)
          expect({ dtype, shape, bytes }).toEqual({
            dtype: tensors.get(name)!.dtype,
            shape: tensors.get(name)!.shape,
            bytes: tensors.get(name)!.bytes,
          });
      }
      const { bits, group_size, zero_point } = (configOf(folder) as { quantization_config: Record<string, Json> }).quantization_config;
      expect(awqFormat.config!(read)).toMatchObject({
        quantization_config: { quant_method: 'awq', bits, group_size, zero_point, version: 'gemm' },
      });
      read.forEach(disposeWeight);
    });
    return;
  }

  it('is written again with the bytes it has, zeros as they are', async () => {
    const tensors = golden(folder);
    const paths = [...tensors.keys()].filter((name) => name.endsWith('.qweight')).map((name) => name.slice(0, -'.qweight'.length));
    const read = new Map<string, Weight>();
    for (const path of paths) read.set(path, await gptqFormat.read(path, sourceOf(tensors), configOf(folder)));
    for (const [path, weight] of read) {
      const written = (await gptqFormat.write(weight, path))!;
      for (const part of ['qweight', 'scales', 'g_idx', ...(folder.includes('v2') ? ['qzeros'] : [])]) {
        const name = `${path}.${part}`;
        expect(written.get(name)).toEqual({
          dtype: tensors.get(name)!.dtype,
          shape: tensors.get(name)!.shape,
          bytes: tensors.get(name)!.bytes,
        });
      }
      const again = await gptqFormat.read(path, sourceOf(new Map(written)), gptqFormat.config!(read));
      expect(await dense(again)).toEqual(await dense(weight));
      disposeWeight(again);
    }
    const { bits, group_size, desc_act, sym } = (configOf(folder) as { quantization_config: Record<string, Json> }).quantization_config;
    expect(gptqFormat.config!(read)).toMatchObject({
      quantization_config: { bits, group_size, desc_act, sym, checkpoint_format: 'gptq_v2' },
    });
    read.forEach(disposeWeight);
  });
});

describe.skipIf(!hasShared)('a checkpoint read in the wrong way', () => {
  it.each([
    [
      'groups one after the other instead of those of act-order',
      'gptq-4bit-asym-actorder',
      (tensors: Files, path: string) => void tensors.delete(`${path}.g_idx`),
      (config: Record<string, Json>) => config,
    ],
    [
      'zeros of the second layout one more',
      'gptq-v2-4bit-asym',
      () => {},
      (config: Record<string, Json>) => ({ ...config, checkpoint_format: 'gptq' }),
    ],
  ])('gives other numbers than the reference: %s', async (_, folder, spoil, changed) => {
    const tensors: Files = new Map(golden(folder));
    const config = configOf(folder) as { quantization_config: Record<string, Json> };
    const io = sharedJson<Io>(`golden/quant/${folder}/io.json`);
    const [path, expected] = Object.entries(io.dequantized)[0]!;
    const module = path.replace(/\.weight$/, '');
    spoil(tensors, module);
    const weight = await gptqFormat.read(module, sourceOf(tensors), { quantization_config: changed(config.quantization_config) });
    expect(furthest(await dense(weight), expected)).toBeGreaterThan(1e-3);
    disposeWeight(weight);
  });
});

const words = (values: number[], shape: number[]): Entry => ({
  dtype: 'I32',
  shape,
  bytes: new Uint8Array(Uint32Array.from(values).buffer),
});
const halves = (bits: number[], shape: number[]): Entry => ({ dtype: 'F16', shape, bytes: new Uint8Array(Uint16Array.from(bits).buffer) });
const half = 0x3800; // 0.5
const one = 0x3c00;

/** An 8 x 8 matrix of codes 8, one group, scale 0.5. */
const flat = (zeros: number, change: Record<string, Entry> = {}): TensorSource =>
  sourceOf(
    new Map(
      Object.entries({
        'p.qweight': words(Array(8).fill(0x88888888), [1, 8]),
        'p.qzeros': words([zeros], [1, 1]),
        'p.scales': halves(Array(8).fill(half), [1, 8]),
        ...change,
      }),
    ),
  );
const gptqConfig = (change: Record<string, Json> = {}): Json => ({
  quantization_config: { quant_method: 'gptq', bits: 4, group_size: 8, sym: true, ...change },
});

async function readFlat(source: TensorSource, config: Json): Promise<{ values: number[]; warnings: string[] }> {
  const warnings: string[] = [];
  const weight = await gptqFormat.read('p', source, config, { warn: (message) => warnings.push(message) });
  const values = await dense(weight);
  disposeWeight(weight);
  return { values, warnings };
}

describe('GPTQ files', () => {
  const nothing = Array(64).fill(0);

  it('store zeros minus one, or as they are, as the label says', async () => {
    expect(await readFlat(flat(0x77777777), gptqConfig())).toEqual({ values: nothing, warnings: [] });
    expect(await readFlat(flat(0x88888888), gptqConfig({ checkpoint_format: 'gptq_v2' }))).toEqual({ values: nothing, warnings: [] });
  });

  it('with a wrong label are read by their symmetric zeros, and a warning says so', async () => {
    const wrong = await readFlat(flat(0x88888888), gptqConfig({ checkpoint_format: 'gptq' }));
    expect(wrong.values).toEqual(nothing);
    expect(wrong.warnings).toEqual([expect.stringMatching(/'p' is labelled 'gptq'.*'gptq_v2'/)]);
    const other = await readFlat(flat(0x77777777), gptqConfig({ checkpoint_format: 'gptq_v2' }));
    expect(other.values).toEqual(nothing);
    expect(other.warnings).toHaveLength(1);
  });

  it('without symmetric zeros are read as labelled', async () => {
    const { values, warnings } = await readFlat(flat(0x88888888), gptqConfig({ sym: false }));
    // Zero 9 under codes 8.
    expect(values).toEqual(Array(64).fill(-0.5));
    expect(warnings).toEqual([]);
  });

  it('wrap a zero of 0 around', async () => {
    const { values } = await readFlat(flat(0xffffffff), gptqConfig({ sym: false }));
    expect(values).toEqual(Array(64).fill(4));
  });

  it('put the first input in the lowest bits', async () => {
    const column = { 'p.qweight': words([0x87654321, ...Array(7).fill(0x88888888)], [1, 8]) };
    const { values } = await readFlat(flat(0x77777777, column), gptqConfig());
    expect(values.slice(0, 8)).toEqual([1, 2, 3, 4, 5, 6, 7, 8].map((code) => (code - 8) / 2));
  });

  it('of 3 bits are one stream of 96 bits, whose values 10 and 21 lie in two words', async () => {
    const codes = Array.from({ length: 32 }, (_, k) => (5 * k + 3) % 8);
    const stream = codes.reduce((bits, code, k) => bits | (BigInt(code) << BigInt(3 * k)), 0n);
    const three = [0n, 32n, 64n].map((shift) => Number((stream >> shift) & 0xffffffffn));
    // Input k of 32 outputs alike, and zeros 0, 1, … 7, 0, … of those outputs, one less each.
    const zeros = Array.from({ length: 32 }, (_, o) => o % 8).reduce(
      (bits, zero, o) => bits | (BigInt((zero + 7) % 8) << BigInt(3 * o)),
      0n,
    );
    const source = sourceOf(
      new Map(
        Object.entries({
          'p.qweight': words(
            three.flatMap((word) => Array<number>(32).fill(word)),
            [3, 32],
          ),
          'p.qzeros': words(
            [0n, 32n, 64n].map((shift) => Number((zeros >> shift) & 0xffffffffn)),
            [1, 3],
          ),
          'p.scales': halves(Array<number>(32).fill(one), [1, 32]),
        }),
      ),
    );
    const config = gptqConfig({ bits: 3, group_size: 32, sym: false });
    const { values } = await readFlat(source, config);
    expect(values).toEqual(Array.from({ length: 32 }, (_, o) => codes.map((code) => code - (o % 8))).flat());
    // Values 10 and 21 are 5 and 4 here: both words have their part.
    expect([codes[10], three[0]! >>> 30, three[1]! & 1]).toEqual([5, 1, 1]);
    expect([codes[21], three[1]! >>> 31, three[2]! & 3]).toEqual([4, 0, 2]);
    const weight = await gptqFormat.read('p', source, config);
    const written = (await gptqFormat.write(weight, 'p'))!;
    expect(written.get('p.qweight')!.bytes).toEqual((await source.read('p.qweight')).bytes);
    disposeWeight(weight);
  });

  it('take 0.5195 bytes an entry at 4 bits in groups of 128, and 4 a column for its group', async () => {
    const matrix = tensor2d(
      Array.from({ length: 128 * 256 }, (_, i) => ((i * 7) % 16) - 8),
      [128, 256],
    );
    const options = { bits: 4, groupSize: 128, grid: 'asymmetric' } as const;
    const weight = affine('p', [128, 256], await encodeAffine('p', [128, 256], rowsOfTensor(matrix), options), options);
    const written = (await gptqFormat.write(weight, 'p'))!;
    expect(written.get('p.scales')!.dtype).toBe('F16');
    const bytes = [...written].reduce((sum, [name, { bytes: own }]) => sum + (name === 'p.g_idx' ? 0 : own.length), 0);
    expect(bytes / (128 * 256)).toBe(0.51953125);
    expect(written.get('p.g_idx')!.bytes).toHaveLength(4 * 256);
    matrix.dispose();
    disposeWeight(weight);
  });

  it('tell their bits by g_idx where the config is silent', async () => {
    const source = flat(0x88888888, { 'p.g_idx': words(Array(8).fill(0), [8]) });
    const weight = await gptqFormat.read('p', source, {});
    expect(weight.options).toMatchObject({ bits: 4, groupSize: 8 });
    disposeWeight(weight);
  });

  it.each<[string, Record<string, Entry>, Record<string, Json>]>([
    ['marlin', {}, { checkpoint_format: 'marlin' }],
    ['rows of words', { 'p.g_idx': words(Array<number>(16).fill(0), [16]) }, {}],
    ['qzeros', { 'p.qzeros': words([0, 0], [1, 2]) }, {}],
    ['scales', { 'p.scales': halves(Array(8).fill(one), [2, 4]) }, {}],
    ['not finite', { 'p.scales': halves(Array(8).fill(0x7c00), [1, 8]) }, {}],
    ['I32', { 'p.qweight': { ...words(Array(8).fill(0), [1, 8]), dtype: 'F32' } }, {}],
    ['group 3', { 'p.g_idx': words([0, 0, 0, 3, 0, 0, 0, 0], [8]) }, {}],
    ['5', {}, { bits: 5 }],
    ['by layer', {}, { dynamic: { '+:.*up': { bits: 8 } } }],
    ['group_size', {}, { group_size: 0 }],
  ])('that cannot be right are refused: %s', async (text, change, config) => {
    const work = gptqFormat.read('p', flat(0x77777777, change), gptqConfig(config));
    await expect(work).rejects.toThrow(FormatError);
    await expect(work).rejects.toThrow(text);
  });
});

describe('AWQ files', () => {
  const config = (change: Record<string, Json> = {}): Json => ({
    quantization_config: { quant_method: 'awq', bits: 4, group_size: 1, zero_point: true, version: 'gemm', ...change },
  });
  const read = async (word: number, zeros: number): Promise<number[]> => {
    const files: Files = new Map(
      Object.entries({
        'p.qweight': words([word], [1, 1]),
        'p.qzeros': words([zeros], [1, 1]),
        'p.scales': halves(Array(8).fill(one), [1, 8]),
      }),
    );
    const weight = await awqFormat.read('p', sourceOf(files), config());
    const values = await dense(weight);
    disposeWeight(weight);
    return values;
  };

  it('have an order of their own, for codes and zeros alike, and no minus one', async () => {
    expect(await read(0x76543210, 0)).toEqual([0, 4, 1, 5, 2, 6, 3, 7]);
    expect(await read(0x75316420, 0)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    expect(await read(0x75316420, 0x75316420)).toEqual(Array(8).fill(0));
  });

  it('of other layouts are refused by name', async () => {
    const files: Files = new Map(Object.entries({ 'p.qweight': words([0], [1, 1]) }));
    await expect(awqFormat.read('p', sourceOf(files), config({ version: 'gemv' }))).rejects.toThrow(/layout 'gemv'/);
    await expect(awqFormat.read('p', sourceOf(files), config({ bits: 3 }))).rejects.toThrow(/4 bits, the config says 3/);
  });
});

describe('what is quantized here', () => {
  it('is written as GPTQ and read again as it was; factors beside a matrix have no layout, folded ones need none', async () => {
    const start = memory().numTensors;
    const model = await initializeModel(
      {
        model_type: 'llama',
        vocab_size: 40,
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 1,
        num_attention_heads: 4,
        num_key_value_heads: 4,
        max_position_embeddings: 32,
        rms_norm_eps: 1e-5,
        rope_theta: 10000,
        tie_word_embeddings: false,
      },
      { seed: 1, trainable: false },
    );
    const batches = [tokenBatch([[1, 5, 9, 2, 30, 7, 7, 1, 0, 3]], { vocabularySize: 40 })];
    const calibrate = { batches };
    await quantize(model, gptq({ bits: 3, groupSize: 16, actOrder: true }), { at: 'q_proj', calibrate });
    await quantize(model, rtn({ bits: 8, groupSize: 32 }), { at: 'up_proj' });
    await quantize(model, awq({ groupSize: 32 }), { at: 'down_proj', calibrate });
    for (const name of ['q_proj', 'up_proj']) {
      const { path, weight } = model.sites(name)[0]!;
      const written = (await gptqFormat.write(weight!, path))!;
      const again = await gptqFormat.read(path, sourceOf(new Map(written)), gptqFormat.config!(new Map([[path, weight!]])));
      expect(await dense(again)).toEqual(await dense(weight!));
      disposeWeight(again);
    }
    const all = new Map(model.sites(['q_proj', 'up_proj']).map(({ path, weight }) => [path, weight!]));
    expect(() => gptqFormat.config!(all)).toThrow(/3,8 bits/);
    const { path, weight } = model.sites('down_proj')[0]!;
    expect(weight!.parts['input_scales']).toBeDefined();
    expect(formats.filter((format) => format.write(weight!, path) !== undefined)).toEqual([]);
    await quantize(model, awq({ groupSize: 32, fold: true }), { at: ['gate_proj', 'up_proj'], calibrate, requantize: true });
    const folded = new Map(model.sites(['gate_proj', 'up_proj']).map((site) => [site.path, site.weight!]));
    for (const [module, own] of folded) {
      const written = (await awqFormat.write(own, module))!;
      const again = await awqFormat.read(module, sourceOf(new Map(written)), awqFormat.config!(folded));
      expect(await dense(again)).toEqual(await dense(own));
      disposeWeight(again);
    }
    batches.forEach(disposeBatch);
    model.dispose();
    expect(memory().numTensors).toBe(start);
  });
});
