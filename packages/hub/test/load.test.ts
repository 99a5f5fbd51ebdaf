import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { hasShared, sharedBytes, sharedJson, sharedPath } from '../../testing/src/shared.ts';
import {
  AbortError,
  ConfigError,
  decodePacked,
  FormatError,
  ggufBlocks,
  NiwakiError,
  NotFoundError,
  ShapeError,
  memory,
  tensor2d,
  type GgufFormat,
  type RawTensor,
} from '@niwaki/tensor';
import { forward, type Model } from '@niwaki/nn';
import { denseWeight, type Format, type Weight } from '@niwaki/weights';
import { describe, expect, test } from 'vitest';
import {
  decodeFloats,
  encodeFloats,
  encodeGguf,
  encodeSafetensors,
  filesFolder,
  hfName,
  llama3Divisors,
  load,
  loadTokenizer,
  memoryFolderSink,
  memorySource,
  openGguf,
  openSafetensors,
  saveModel,
  type LazyTensor,
  type LoadOptions,
  type Loaded,
  type Source,
} from '../src/index.ts';
import { deinterleaved, ggufTwin, llamaMetadata, type Config } from './twins.ts';

const golden = (name: string) => ({
  config: sharedJson<Config>(`golden/models/${name}/config.json`),
  bytes: sharedBytes(`golden/models/${name}/model.safetensors`),
  io: sharedJson<{ input_ids: number[][]; logits: number[] }>(`golden/models/${name}/io.json`),
});
const json = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value));
const folderOf = (config: unknown, bytes: Uint8Array, more: readonly [string, Uint8Array][] = []) =>
  filesFolder(new Map([['config.json', json(config)], ['model.safetensors', bytes], ...more]));

async function logitsOf(model: Model, ids: readonly number[]): Promise<Float32Array> {
  const tokenIds = tensor2d([[...ids]], undefined, 'int32');
  const logits = forward(model, { tokenIds });
  const values = (await logits.data()) as Float32Array;
  logits.dispose();
  tokenIds.dispose();
  return values.slice();
}
const distance = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let worst = a.length === b.length ? 0 : Infinity;
  for (let i = 0; i < a.length; i++) worst = Math.max(worst, Math.abs(a[i]! - b[i]!));
  return worst;
};
/** Loads, uses, disposes; nothing may stay. */
async function using<T>(source: Source, options: LoadOptions, use: (loaded: Loaded) => Promise<T>): Promise<T> {
  const before = memory().numTensors;
  const loaded = await load(source, options);
  try {
    return await use(loaded);
  } finally {
    loaded.model.dispose();
    expect(memory().numTensors).toBe(before);
  }
}
const logitsFrom = (source: Source, ids: readonly number[], options: LoadOptions = {}): Promise<Float32Array> =>
  using(source, options, ({ model }) => logitsOf(model, ids));

// f32 against the f32 reference: sums in another order, no more.
const tolerance = 1e-4;

describe.skipIf(!hasShared)('load', () => {
  test.each(['llama', 'smollm2-tied', 'llama3-rope', 'llama-yarn-rope', 'mistral-swa', 'qwen2', 'qwen3'])(
    '%s from its folder gives the reference logits',
    async (name) => {
      const { io } = golden(name);
      const logits = await using(sharedPath(`golden/models/${name}`), {}, ({ model, warnings }) => {
        expect(warnings).toEqual([]);
        return logitsOf(model, io.input_ids[0]!);
      });
      expect(distance(logits, io.logits.slice(0, logits.length))).toBeLessThan(tolerance);
    },
  );

  test.each(['llama', 'smollm2-tied'])('%s as GGUF gives the logits of its safetensors, rows of q and k put back', async (name) => {
    const { config, bytes, io } = golden(name);
    const ids = io.input_ids[0]!;
    const twin = await ggufTwin(bytes, config);
    const expected = await logitsFrom(folderOf(config, bytes), ids);
    expect(distance(await logitsFrom(twin, ids), expected)).toBeLessThan(1e-6);
    // Interleaved by another count of heads, the rows of k land elsewhere, and the logits see it.
    const kvHeads = { type: 'u32', value: Number(config['num_key_value_heads']) } as const;
    const wrong = await ggufTwin(bytes, { ...config, num_key_value_heads: 1 }, { metadata: [['llama.attention.head_count_kv', kvHeads]] });
    expect(distance(await logitsFrom(wrong, ids), expected)).toBeGreaterThan(0.01);
  });

  test('divisors of rope_freqs.weight act: logits at position 100 are those of the scaled config', async () => {
    const { config, bytes } = golden('smollm2-tied');
    const long = { ...config, hidden_size: 16, head_dim: 4, max_position_embeddings: 256, rope_theta: 10_000 };
    const scaling = { factor: 8, low: 1, high: 4, trained: 64 };
    const divisors = llama3Divisors(scaling, { theta: 10_000, headSize: 4 });
    const table = {
      name: 'rope_freqs.weight',
      dtype: 'F32',
      shape: [2],
      read: async () => encodeFloats(Float32Array.from(divisors), 'F32'),
    };
    const rope = { rope_type: 'llama3', factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 64 };
    const ids = Array.from({ length: 101 }, (_, i) => (i * 7) % 48);
    const scaled = await logitsFrom(folderOf({ ...long, rope_scaling: rope }, bytes), ids);
    const twin = await logitsFrom(await ggufTwin(bytes, long, { tensors: [table] }), ids);
    const plain = await logitsFrom(folderOf(long, bytes), ids);
    expect(distance(twin, scaled)).toBeLessThan(1e-5);
    expect(distance(twin.slice(-48), plain.slice(-48))).toBeGreaterThan(1e-3);
  });

  test('half precision is widened by default, or kept in two bytes, with the same logits', async () => {
    const { config, bytes, io } = golden('llama');
    for (const dtype of ['F16', 'BF16'] as const) {
      const file = await openSafetensors(memorySource(bytes));
      const halves = new Map<string, RawTensor>();
      for (const name of file.names()) {
        const raw = await file.read(name);
        halves.set(name, { dtype, shape: raw.shape, bytes: encodeFloats(decodeFloats(raw), dtype) });
      }
      const folder = folderOf(config, await encodeSafetensors(halves));
      const [wide, kept] = [await logitsFrom(folder, io.input_ids[0]!), await logitsFrom(folder, io.input_ids[0]!, { dtype: 'stored' })];
      expect(distance(wide, kept)).toBeLessThan(tolerance);
      const bytesOf = (options: LoadOptions): Promise<number> =>
        using(folder, options, async ({ model }) => model.sites('model.layers.0.mlp.up_proj')[0]!.weight!.parts['weight']!.bytes());
      expect([await bytesOf({}), await bytesOf({ dtype: 'stored' })]).toEqual([24 * 16 * 4, 24 * 16 * 2]);
    }
  });

  test('names with or without the prefix of the base model are one', async () => {
    const { config, bytes, io } = golden('smollm2-tied');
    const file = await openSafetensors(memorySource(bytes));
    const bare = new Map<string, RawTensor>();
    for (const name of file.names()) bare.set(name.replace(/^model\./, ''), await file.read(name));
    bare.set('layers.0.self_attn.rotary_emb.inv_freq', { dtype: 'F32', shape: [1], bytes: new Uint8Array(4) });
    await using(folderOf(config, await encodeSafetensors(bare)), {}, async ({ model, warnings }) => {
      expect(warnings).toEqual([]);
      expect(distance(await logitsOf(model, io.input_ids[0]!), io.logits.slice(0, 12 * 48))).toBeLessThan(tolerance);
    });
  });

  test('a format claims matrices by the names present and reads them, prefix or not', async () => {
    const { config, bytes, io } = golden('llama');
    const file = await openSafetensors(memorySource(bytes));
    const changed = new Map<string, RawTensor>();
    for (const name of file.names()) {
      const raw = await file.read(name);
      if (!name.includes('up_proj')) changed.set(name, raw);
      else {
        changed.set(name.replace('weight', 'doubled'), {
          ...raw,
          bytes: encodeFloats(
            decodeFloats(raw).map((value) => 2 * value),
            'F32',
          ),
        });
      }
    }
    const asked: string[] = [];
    const doubled: Format<Weight> = {
      name: 'doubled',
      claims: (names, path) => names.has(`${path}.doubled`),
      read: async (path, source) => {
        asked.push(path);
        const raw = await source.read(`${path}.doubled`);
        const { denseParameter, tensor } = await import('@niwaki/tensor');
        const values = decodeFloats(raw).map((value) => value / 2);
        return denseWeight(denseParameter(`${path}.weight`, tensor(values, [...raw.shape]), { role: 'matrix' }));
      },
      write: () => undefined,
    };
    const folder = folderOf(config, await encodeSafetensors(changed));
    const logits = await logitsFrom(folder, io.input_ids[0]!, { formats: [doubled] });
    expect(distance(logits, io.logits.slice(0, logits.length))).toBeLessThan(tolerance);
    expect(asked).toEqual(['model.layers.0.mlp.up_proj', 'model.layers.1.mlp.up_proj']);
    await expect(load(folder)).rejects.toThrow(NotFoundError);
  });

  test('what is missing, unused, of another shape or of no numbers is said by name, and nothing leaks', async () => {
    const { config, bytes } = golden('llama');
    const before = memory().numTensors;
    const file = await openSafetensors(memorySource(bytes));
    const all = new Map<string, RawTensor>();
    for (const name of file.names()) all.set(name, await file.read(name));
    const without = async (change: (tensors: Map<string, RawTensor>) => void): Promise<Source> => {
      const copy = new Map(all);
      change(copy);
      return folderOf(config, await encodeSafetensors(copy, { cloneShared: true }));
    };
    const up = 'model.layers.1.mlp.up_proj.weight';
    await expect(load(await without((tensors) => (tensors.delete(up), tensors.delete('lm_head.weight'))))).rejects.toThrow(
      /2 tensors are missing: .*up_proj.*lm_head/,
    );
    const wider = { dtype: 'F32', shape: [25, 16], bytes: new Uint8Array(25 * 16 * 4) };
    await expect(load(await without((tensors) => tensors.set(up, wider)))).rejects.toThrow(ShapeError);
    await expect(load(await without((tensors) => tensors.set(up, wider)))).rejects.toThrow(/intermediate_size/);
    const bits = { dtype: 'U8', shape: [24, 16], bytes: new Uint8Array(24 * 16) };
    await expect(load(await without((tensors) => tensors.set(up, bits)))).rejects.toThrow(/up_proj.weight' is stored as U8/);
    await expect(load(folderOf({ ...config, model_type: 'nope' }, bytes))).rejects.toThrow(ConfigError);
    expect(memory().numTensors).toBe(before);
    await using(await without((tensors) => tensors.set('extra', bits)), {}, async ({ warnings }) => {
      expect(warnings).toEqual([expect.stringContaining('does not use: extra')]);
    });
  });

  test('a head beside a tie is dropped when equal, used with a warning when not', async () => {
    const { config, bytes, io } = golden('smollm2-tied');
    const file = await openSafetensors(memorySource(bytes));
    const all = new Map<string, RawTensor>();
    for (const name of file.names()) all.set(name, await file.read(name));
    const embedding = all.get('model.embed_tokens.weight')!;
    all.set('lm_head.weight', embedding);
    await using(folderOf(config, await encodeSafetensors(all, { cloneShared: true })), {}, async (loaded) => {
      expect([loaded.warnings, loaded.config['tie_word_embeddings']]).toEqual([[], true]);
      expect(distance(await logitsOf(loaded.model, io.input_ids[0]!), io.logits.slice(0, 12 * 48))).toBeLessThan(tolerance);
    });
    all.set('lm_head.weight', { ...embedding, bytes: embedding.bytes.slice().fill(0, 0, 64) });
    await using(folderOf(config, await encodeSafetensors(all)), {}, async (loaded) => {
      expect([loaded.warnings.length, loaded.config['tie_word_embeddings']]).toEqual([1, false]);
      // Saved and loaded again it is what it was: two matrices, and a config that says so.
      const sink = memoryFolderSink();
      await saveModel(loaded.model, sink);
      const again = await logitsFrom(filesFolder(sink.files), io.input_ids[0]!);
      expect(distance(again, await logitsOf(loaded.model, io.input_ids[0]!))).toBe(0);
    });
  });

  test('progress ends at the total, and an abort in the middle leaves nothing', async () => {
    const { config, bytes } = golden('llama');
    const seen: { loaded: number; total: number; name: string }[] = [];
    await using(folderOf(config, bytes), { onProgress: (progress) => seen.push(progress) }, async () => {});
    expect(seen.at(-1)!.loaded).toBe(seen.at(-1)!.total);
    expect(seen.length).toBeGreaterThan(10);
    const controller = new AbortController();
    const before = memory().numTensors;
    await expect(load(folderOf(config, bytes), { signal: controller.signal, onProgress: () => controller.abort() })).rejects.toThrow(
      AbortError,
    );
    expect(memory().numTensors).toBe(before);
  });

  test('every kind of source opens the same model', async () => {
    const { config, bytes, io } = golden('smollm2-tied');
    const ids = io.input_ids[0]!;
    const gguf = await ggufTwin(bytes, config);
    const files = new Map([
      ['/m/config.json', json(config)],
      ['/m/model.safetensors', bytes],
      ['/m/twin.gguf', gguf],
    ]);
    const server = createServer((request, response) => {
      const file = files.get(request.url!);
      if (file === undefined) return void response.writeHead(404).end();
      const range = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? '');
      if (range === null) return void response.end(file);
      const [from, to] = [Number(range[1]), Math.min(Number(range[2]), file.length - 1)];
      response.writeHead(206, { 'Content-Range': `bytes ${from}-${to}/${file.length}` }).end(file.subarray(from, to + 1));
    });
    await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/m`;
    const folder = await mkdtemp(join(tmpdir(), 'niwaki-'));
    await writeFile(join(folder, 'config.json'), json(config));
    await writeFile(join(folder, 'model.safetensors'), bytes);
    await writeFile(join(folder, 'twin.gguf'), gguf);
    const sources: Source[] = [
      folder,
      join(folder, 'model.safetensors'),
      join(folder, 'twin.gguf'),
      new URL(`file://${folder}/twin.gguf`),
      url,
      new URL(`${url}/`),
      `${url}/model.safetensors`,
      `${url}/twin.gguf`,
      new Blob([gguf as BlobPart]),
      gguf,
      gguf.slice().buffer,
      [new File([json(config) as BlobPart], 'config.json'), new File([bytes as BlobPart], 'model.safetensors')],
      [new File([gguf as BlobPart], 'twin.gguf')],
    ];
    for (const source of sources) expect(distance(await logitsFrom(source, ids), io.logits.slice(0, 12 * 48))).toBeLessThan(tolerance);
    expect(distance(await logitsFrom(bytes, ids, { config: config as never }), io.logits.slice(0, 12 * 48))).toBeLessThan(tolerance);
    const resolvers: LoadOptions['resolvers'] = [
      async (id) => (id === 'org/tiny' ? { kind: 'file', file: memorySource(gguf) } : undefined),
    ];
    expect(distance(await logitsFrom('org/tiny', ids, { resolvers }), io.logits.slice(0, 12 * 48))).toBeLessThan(tolerance);
    server.close();
    await rm(folder, { recursive: true });
  });

  test('a tokenizer that cannot be used is a warning: the model is there', async () => {
    const { config, bytes } = golden('llama');
    const folder = folderOf(config, bytes, [['tokenizer.json', json({ model: { type: 'Nope' } })]]);
    await using(folder, {}, async ({ tokenizer, warnings }) => {
      expect(tokenizer).toBeUndefined();
      expect(warnings).toEqual([expect.stringContaining('no tokenizer: tokenizer.json cannot be used')]);
    });
    const metadata = [
      ['tokenizer.ggml.model', { type: 'string', value: 'rwkv' }],
      ['tokenizer.ggml.tokens', { type: 'array', of: 'string', value: [] }],
    ] as const;
    await using(await ggufTwin(bytes, config, { metadata }), {}, async ({ warnings }) => {
      expect(warnings).toEqual([expect.stringContaining("'rwkv'")]);
    });
  });

  test('a source that is not there says what it would have taken', async () => {
    const { config, bytes } = golden('llama');
    await expect(load('org/model')).rejects.toThrow(/not downloaded by their id yet/);
    await expect(load('./nowhere/model.gguf')).rejects.toThrow(NotFoundError);
    await expect(load(bytes)).rejects.toThrow(/no config.json beside/);
    await expect(load(new Uint8Array(3))).rejects.toThrow(FormatError);
    const page = new File(['<html>not found</html>'], 'model.gguf');
    await expect(load(page)).rejects.toThrow(/model.gguf is no GGUF file: it begins with "<htm", not with "GGUF"/);
    await expect(load(new File([], 'model.gguf'))).rejects.toThrow(/it is empty/);
    await expect(load(new Uint8Array(3), { config: config as never })).rejects.toThrow(FormatError);
    await expect(load(filesFolder(new Map([['model.safetensors', bytes]])))).rejects.toThrow(/no config.json/);
    await expect(load(filesFolder(new Map([['config.json', json(config)]])))).rejects.toThrow(/neither model.safetensors nor/);
    await expect(load(filesFolder(new Map([['config.json', json([])]])))).rejects.toThrow(FormatError);
    await expect(loadTokenizer(folderOf(config, bytes))).rejects.toThrow(/no tokenizer/);
  });
});

describe.skipIf(!hasShared)('a tensor in blocks that are not decoded', () => {
  test('names its type and its tensor', async () => {
    const { config, bytes } = golden('llama');
    const file = await ggufTwin(
      bytes,
      { ...config, hidden_size: 16 },
      {
        drop: ['model.embed_tokens.weight'],
        tensors: [{ name: 'token_embd.weight', dtype: 'Q5_0', shape: [48, 32], read: async () => new Uint8Array(48 * 22) }],
      },
    );
    await expect(load(file)).rejects.toThrow(/'model.embed_tokens.weight' is stored as Q5_0/);
  });
});

describe('packed blocks', () => {
  const config = {
    model_type: 'llama',
    vocab_size: 8,
    hidden_size: 256,
    intermediate_size: 256,
    num_hidden_layers: 1,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    max_position_embeddings: 64,
    rms_norm_eps: 1e-5,
    rope_theta: 10_000,
    tie_word_embeddings: true,
  };
  const shapes = new Map<string, [number, number]>([
    ['token_embd', [8, 256]],
    ['blk.0.attn_q', [256, 256]],
    ['blk.0.attn_k', [128, 256]],
    ['blk.0.attn_v', [128, 256]],
    ['blk.0.attn_output', [256, 256]],
    ['blk.0.ffn_gate', [256, 256]],
    ['blk.0.ffn_up', [256, 256]],
    ['blk.0.ffn_down', [256, 256]],
  ]);
  const half = Uint8Array.of(0x00, 0x18); // 2^-9: the scales of random blocks, so that values stay small
  /** Where each block keeps its scales. */
  const scales: Readonly<Record<string, readonly number[]>> = { Q4_0: [0], Q4_1: [0, 2], Q8_0: [0], Q4_K: [0, 2], Q6_K: [208] };

  test.each(Object.keys(scales) as GgufFormat[])('%s stays packed and gives the logits of the numbers it stands for', async (format) => {
    const { elements, bytes: blockBytes } = ggufBlocks[format];
    const packed: LazyTensor[] = [];
    const plain: [string, RawTensor][] = [];
    let seed = 1;
    for (const [name, shape] of shapes) {
      const count = (shape[0] * shape[1]) / elements;
      const blocks = new Uint8Array(count * blockBytes).map(() => (seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) >>> 24);
      for (let block = 0; block < count; block++) for (const at of scales[format]!) blocks.set(half, block * blockBytes + at);
      packed.push({ name: `${name}.weight`, dtype: format, shape, read: async () => blocks });
      const values = new Float32Array(shape[0] * shape[1]);
      decodePacked({ format, out: shape[0], in: shape[1], blockSize: elements }, { blocks }, 0, values.length, values);
      const heads = name.endsWith('attn_q') ? 4 : name.endsWith('attn_k') ? 2 : undefined;
      const inOrder = heads === undefined ? values : deinterleaved(values, shape[0] / heads, shape[1]);
      plain.push([hfName(`${name}.weight`)!, { dtype: 'F32', shape, bytes: encodeFloats(inOrder, 'F32') }]);
    }
    for (const name of ['blk.0.attn_norm', 'blk.0.ffn_norm', 'output_norm']) {
      const ones = encodeFloats(new Float32Array(256).fill(1), 'F32');
      packed.push({ name: `${name}.weight`, dtype: 'F32', shape: [256], read: async () => ones });
      plain.push([hfName(`${name}.weight`)!, { dtype: 'F32', shape: [256], bytes: ones.slice() }]);
    }
    const ids = [1, 7, 0, 3, 3, 5];
    const expected = await logitsFrom(folderOf(config, await encodeSafetensors(new Map(plain))), ids);
    expect(Math.max(...expected)).toBeGreaterThan(0.01);
    await using(await encodeGguf(llamaMetadata(config), packed), {}, async ({ model }) => {
      const site = model.sites('model.layers.0.self_attn.q_proj')[0]!;
      expect([site.weight!.kind, site.weight!.parts['weight']!.bytes()]).toEqual(['gguf', (256 * 256 * blockBytes) / elements]);
      const logits = await logitsOf(model, ids);
      const size = Math.max(...expected.map(Math.abs));
      expect(distance(logits, expected) / size).toBeLessThan(tolerance);
    });
  });
});

describe.skipIf(!hasShared)('hostile files', () => {
  test('a GGUF header with flipped bytes loads, or is a typed error in no time, and nothing leaks', async () => {
    const { config, bytes } = golden('smollm2-tied');
    const twin = await ggufTwin(bytes, config);
    const { header } = await openGguf(memorySource(twin));
    const before = memory().numTensors;
    let random = 1;
    let loads = 0;
    for (let i = 0; i < 400; i++) {
      random = (Math.imul(random, 1664525) + 1013904223) >>> 0;
      const broken = twin.slice();
      broken[random % header.dataStart]! ^= 1 << (random >>> 29);
      const outcome = await load(broken).catch((error: unknown) => error);
      if (NiwakiError.isInstance(outcome)) continue;
      (outcome as Loaded).model.dispose();
      loads++;
    }
    expect(loads).toBeGreaterThan(0);
    expect(memory().numTensors).toBe(before);
  });

  test('a config that promises layers without end is refused', async () => {
    const { config, bytes } = golden('llama');
    await expect(load(folderOf({ ...config, num_hidden_layers: 2 ** 30 }, bytes))).rejects.toThrow(/1073741824 layers/);
  });
});

describe.skipIf(!hasShared)('saveModel', () => {
  test('a saved model loads to the same logits, tied heads once, shards with their index', async () => {
    const { io } = golden('smollm2-tied');
    const ids = io.input_ids[0]!;
    await using(sharedPath('golden/models/smollm2-tied'), {}, async ({ model }) => {
      const expected = await logitsOf(model, ids);
      const live = memory().numTensors;
      const one = memoryFolderSink();
      await saveModel(model, one);
      expect([...one.files.keys()].sort()).toEqual(['config.json', 'model.safetensors']);
      const names = (await openSafetensors(memorySource(one.files.get('model.safetensors')!))).names();
      expect(names).not.toContain('lm_head.weight');
      expect(new Set(names)).toEqual(new Set((await openSafetensors(memorySource(golden('smollm2-tied').bytes))).names()));
      expect(distance(await logitsFrom(filesFolder(one.files), ids), expected)).toBe(0);

      const many = memoryFolderSink();
      const seen: number[] = [];
      await saveModel(model, many, { shardBytes: 4000, onProgress: ({ loaded, total }) => seen.push(loaded / total) });
      expect(many.files.has('model-00001-of-00006.safetensors')).toBe(true);
      expect(seen.at(-1)).toBe(1);
      expect(distance(await logitsFrom(filesFolder(many.files), ids), expected)).toBe(0);
      const index = new TextDecoder().decode(many.files.get('model.safetensors.index.json')!);
      expect(JSON.parse(index)).toMatchObject({
        metadata: { total_size: seen.length && one.files.get('model.safetensors')!.length - headerOf(one.files.get('model.safetensors')!) },
      });
      expect(memory().numTensors).toBe(live);
    });
  });

  test('in half precision, from packed halves, with its tokenizer', async () => {
    const { io } = golden('llama');
    const tokenizer = await loadTokenizer(
      filesFolder(
        new Map([
          ['tokenizer.json', sharedBytes('golden/tokenizers/smollm2-style/tokenizer.json')],
          ['tokenizer_config.json', sharedBytes('golden/tokenizers/smollm2-style/tokenizer_config.json')],
          ['chat_template.jinja', new TextEncoder().encode('{{ messages[0].content }}')],
          ['generation_config.json', json({ eos_token_id: [0, 2] })],
        ]),
      ),
    );
    expect(tokenizer.eosIds).toEqual([0, 2]);
    const sink = memoryFolderSink();
    await using(sharedPath('golden/models/llama'), {}, ({ model }) => saveModel(model, sink, { dtype: 'bf16', tokenizer }));
    const packed = memoryFolderSink();
    await using(filesFolder(sink.files), { dtype: 'stored' }, async ({ model, tokenizer: again, warnings }) => {
      expect(again!.encode('Hello world!')).toEqual(tokenizer.encode('Hello world!'));
      expect(again!.applyChatTemplate([{ role: 'user', content: 'x' }])).toBe('x');
      expect(again!.eosIds).toEqual([0, 2]);
      expect(warnings).toEqual([expect.stringContaining('420 tokens, the embedding 48 rows')]);
      await saveModel(model, packed, { dtype: 'bf16' });
      // Of logits up to 4; f32 would be within 1e-4.
      expect(distance(await logitsOf(model, io.input_ids[0]!), io.logits.slice(0, 12 * 48))).toBeLessThan(0.1);
    });
    expect(packed.files.get('model.safetensors')).toEqual(sink.files.get('model.safetensors'));
  });

  test('in shards over one file, and back, leaves nothing that would be read in its place', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'niwaki-'));
    const names = async (): Promise<string[]> => (await readdir(folder)).filter((name) => name.startsWith('model.safetensors'));
    for (const target of [folder, new Map<string, Uint8Array>()]) {
      const source = typeof target === 'string' ? target : filesFolder(target);
      await using(sharedPath('golden/models/llama'), {}, ({ model }) => saveModel(model, target));
      await using(sharedPath('golden/models/qwen2'), {}, ({ model }) => saveModel(model, target, { shardBytes: 4000 }));
      await using(source, {}, async ({ model }) => expect(model.info.family).toBe('qwen2'));
      await using(sharedPath('golden/models/llama'), {}, ({ model }) => saveModel(model, target));
      await using(source, {}, async ({ model }) => expect(model.info.family).toBe('llama'));
    }
    expect(await names()).toEqual(['model.safetensors']);
    await rm(folder, { recursive: true });
  });

  test('on disk, whole or not at all', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'niwaki-'));
    await using(sharedPath('golden/models/llama'), {}, async ({ model }) => {
      const controller = new AbortController();
      const saving = saveModel(model, join(folder, 'a'), { signal: controller.signal, onProgress: () => controller.abort() });
      await expect(saving).rejects.toThrow(AbortError);
      expect(await readdir(join(folder, 'a'))).toEqual([]);
      // Nor does a shard that was whole by then replace the old one.
      await writeFile(join(folder, 'a', 'model-00001-of-00006.safetensors'), 'old');
      let shards = 0;
      const later = new AbortController();
      const onProgress = (): void => void (++shards === 12 && later.abort());
      await expect(saveModel(model, join(folder, 'a'), { shardBytes: 4800, signal: later.signal, onProgress })).rejects.toThrow(AbortError);
      expect(await readdir(join(folder, 'a'))).toEqual(['model-00001-of-00006.safetensors']);
      await saveModel(model, join(folder, 'b'));
      expect((await readdir(join(folder, 'b'))).sort()).toEqual(['config.json', 'model.safetensors']);
      expect(JSON.parse(await readFile(join(folder, 'b/config.json'), 'utf8'))).toMatchObject({
        model_type: 'llama',
        torch_dtype: 'float32',
      });
    });
    await rm(folder, { recursive: true });
  });
});

const headerOf = (bytes: Uint8Array): number => 8 + new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
