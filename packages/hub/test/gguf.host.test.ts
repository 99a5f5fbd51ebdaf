import { FormatError, NiwakiError } from '@niwaki/tensor';
import { describe, expect, test } from 'vitest';
import {
  decodeFloats,
  encodeGguf,
  encodeFloats,
  fitLlama3,
  ggufAsHf,
  ggufName,
  hfName,
  llama3Divisors,
  memorySource,
  openGguf,
  type ByteSource,
  type GgufValue,
  type LazyTensor,
} from '../src/index.ts';

const text = (value: string): GgufValue => ({ type: 'string', value });
const u32 = (value: number): GgufValue => ({ type: 'u32', value });
const f32 = (value: number): GgufValue => ({ type: 'f32', value });
const floats = (name: string, shape: number[], values: ArrayLike<number>, dtype: 'F32' | 'F16' = 'F32'): LazyTensor => ({
  name,
  dtype,
  shape,
  read: async () => encodeFloats(Float32Array.from(values), dtype),
});
const open = (bytes: Uint8Array) => openGguf(memorySource(bytes));
const toHex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const count = (n: number, at = (i: number): number => i): number[] => Array.from({ length: n }, (_, i) => at(i));

const minimal = (): Promise<Uint8Array> =>
  encodeGguf(
    new Map<string, GgufValue>([
      ['general.architecture', text('llama')],
      ['llama.block_count', u32(1)],
      ['tokenizer.ggml.tokens', { type: 'array', of: 'string', value: ['a', 'bc'] }],
    ]),
    [floats('x.weight', [2, 3], [1, 2, 3, 4, 5, 6]), floats('y', [1], [1.5], 'F16')],
  );

async function rewrite(bytes: Uint8Array): Promise<Uint8Array> {
  const file = await open(bytes);
  const tensors = file.names().map((name): LazyTensor => ({ name, ...file.info(name), read: async () => (await file.read(name)).bytes }));
  return encodeGguf(file.header.metadata, tensors);
}

test('the minimal file has the bytes of the specification', async () => {
  const bytes = await minimal();
  expect(bytes.byteLength).toBe(320);
  expect(toHex(bytes.subarray(0, 24))).toBe('474755460300000002000000000000000300000000000000');
  expect(toHex(bytes.subarray(0x120, 0x122))).toBe('003e');
  const file = await open(bytes);
  expect(file.header.dataStart).toBe(0x100);
  expect(file.info('x.weight')).toEqual({ dtype: 'F32', shape: [2, 3], bytes: 24 });
  expect([...decodeFloats(await file.read('x.weight'))]).toEqual([1, 2, 3, 4, 5, 6]);
  expect([...decodeFloats(await file.read('x.weight', [12, 24]).then((raw) => ({ ...raw, shape: [3] })))]).toEqual([4, 5, 6]);
});

test('reading and writing again gives the same bytes, whatever keys and types it holds', async () => {
  const metadata = new Map<string, GgufValue>([
    ['z.unknown', { type: 'u8', value: 255 }],
    ['a.i8', { type: 'i8', value: -1 }],
    ['b.u16', { type: 'u16', value: 65535 }],
    ['c.i16', { type: 'i16', value: -2 }],
    ['d.i32', { type: 'i32', value: -3 }],
    ['e.f32', f32(0.1)],
    ['f.bool', { type: 'bool', value: true }],
    ['g.u64', { type: 'u64', value: 2n ** 64n - 1n }],
    ['h.i64', { type: 'i64', value: -5 }],
    ['i.f64', { type: 'f64', value: Math.PI }],
    ['j.text', text('\ufeffé日本')],
    ['k.array', { type: 'array', of: 'f32', value: [1, 2] }],
    ['l.empty', { type: 'array', of: 'string', value: [] }],
    ['general.alignment', u32(64)],
  ]);
  for (const bytes of [await minimal(), await encodeGguf(metadata, [floats('w', [3], [1, 2, 3]), floats('v', [1], [7])])]) {
    expect(Buffer.compare(await rewrite(bytes), bytes)).toBe(0);
  }
  expect((await open(await encodeGguf(metadata, []))).header.metadata).toEqual(
    new Map([...metadata].map(([key, value]) => [key, key === 'e.f32' ? f32(Math.fround(0.1)) : value])),
  );
});

describe('where tensor data starts', () => {
  // 24 + (8 + key + 4 + 8) + (8 + 1 + 4 + 8 + 4 + 8) = 77 + key
  const withHeaderOf = async (bytes: number): Promise<Uint8Array> =>
    encodeGguf(new Map([['k'.repeat(bytes - 77), text('')]]), [floats('w', [1], [5])]);

  test.each([
    [96, 96],
    [97, 128],
    [128, 128],
    [127, 128],
  ])('a header that ends at byte %i puts it at %i', async (end, start) => {
    const file = await open(await withHeaderOf(end));
    expect(file.header.dataStart).toBe(start);
    expect([...decodeFloats(await file.read('w'))]).toEqual([5]);
  });

  test.each([1, 8, 16, 64, 4096])('alignment %i', async (alignment) => {
    const tensors = [floats('a', [1], [1]), floats('b', [3], [2, 3, 4]), floats('c', [1], [5])];
    const file = await open(await encodeGguf(new Map([['general.alignment', u32(alignment)]]), tensors));
    expect(file.header.dataStart % alignment).toBe(0);
    expect([...decodeFloats(await file.read('b'))]).toEqual([2, 3, 4]);
    expect([...decodeFloats(await file.read('c'))]).toEqual([5]);
  });

  test.each([0, 24, 33])('an alignment of %i is refused', async (alignment) => {
    const bytes = await encodeGguf(new Map([['general.alignment', u32(32)]]), []);
    new DataView(bytes.buffer, bytes.byteOffset).setUint32(24 + 8 + 17 + 4, alignment, true);
    await expect(open(bytes)).rejects.toThrow(/power of two/);
  });
});

test('a header of 200,000 tokens is read in 64 KB slices', async () => {
  const tokens = count(200_000).map((i) => `token${i}é`);
  const bytes = await encodeGguf(new Map([['tokenizer.ggml.tokens', { type: 'array', of: 'string', value: tokens }]]), [
    floats('w', [1], [5]),
  ]);
  const reads: number[] = [];
  const inner = memorySource(bytes);
  const source: ByteSource = {
    ...inner,
    read: (offset, length, options) => {
      reads.push(length);
      return inner.read(offset, length, options);
    },
  };
  const file = await openGguf(source, { sliceBytes: 65_536 });
  expect(file.metadata.texts('tokenizer.ggml.tokens')).toEqual(tokens);
  expect(Math.max(...reads)).toBeLessThanOrEqual(65_536);
  expect(reads.length).toBeGreaterThan(40);
});

describe('refused, with a reason', () => {
  const patched = async (at: number, value: number, bits: 8 | 32 = 32): Promise<Uint8Array> => {
    const bytes = await minimal();
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    if (bits === 8) view.setUint8(at, value);
    else view.setUint32(at, value, true);
    return bytes;
  };
  test.each([
    ['bad magic', 0, 0x46464747, /not a GGUF file/],
    ['version 1', 4, 1, /version 1/],
    ['version 4', 4, 4, /version 4/],
    ['big-endian', 4, 0x03000000, /big-endian/],
    ['more tensors than fit', 8, 0x7fffffff, /cannot fit/],
    ['more keys than fit', 16, 0x7fffffff, /cannot fit/],
    ['a count beyond 2^53', 12, 0xffffffff, /more than any file holds/],
    ['a key longer than any', 24, 0x7fffffff, /at most 65535/],
  ])('%s', async (_, at, value, message) => {
    await expect(open(await patched(at, value))).rejects.toThrow(message);
  });

  const key = (type: number, more: readonly number[]): Uint8Array =>
    Uint8Array.from([
      0x47,
      0x47,
      0x55,
      0x46,
      3,
      0,
      0,
      0,
      ...count(8, () => 0),
      1,
      ...count(7, () => 0),
      1,
      ...count(7, () => 0),
      107,
      type,
      0,
      0,
      0,
      ...more,
    ]);
  test.each([
    ['an unknown value type', key(13, [0]), /value type 13/],
    ['an array of arrays', key(9, [9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), /array of arrays/],
    ['an array longer than the file', key(9, [0, 0, 0, 0, 255, 255, 0, 0, 0, 0, 0, 0]), /65535 values/],
    ['text longer than the file', key(8, [255, 255, 0, 0, 0, 0, 0, 0]), /ends within/],
    ['a truth value of 2', key(7, [2]), /truth value of 2/],
    ['text that is not UTF-8', key(8, [1, 0, 0, 0, 0, 0, 0, 0, 255]), /not UTF-8/],
  ])('%s', async (_, bytes, message) => {
    await expect(open(bytes)).rejects.toThrow(message);
  });

  test('a tensor type that is not read names type and tensor', async () => {
    const bytes = await minimal();
    // y's type: the last 4 + 8 bytes of the header are its type and offset; the header ends before 0x100
    const end = bytes.subarray(0, 0x100).lastIndexOf(0x20) + 8; // its offset, 0x20, comes last
    new DataView(bytes.buffer, bytes.byteOffset).setUint32(end - 12, 17, true);
    await expect(open(bytes)).rejects.toThrow(/tensor 'y' has the type number 17/);
  });

  test('an offset that leaves a hole, rows that are no whole blocks, five sides, a long name, a name twice', async () => {
    await expect(open(await patched(0xe5, 64, 8))).rejects.toThrow(FormatError);
    const block: LazyTensor = { name: 'w', dtype: 'Q4_0', shape: [2, 32], read: async () => new Uint8Array(36) };
    const bytes = await encodeGguf(new Map(), [block]);
    new DataView(bytes.buffer, bytes.byteOffset).setUint32(24 + 9 + 4, 31, true);
    await expect(open(bytes)).rejects.toThrow(/tensor 'w': Q4_0 \[2,31\] is no whole number of blocks/);
    await expect(open(await encodeGguf(new Map(), [floats('w', [1, 1, 1, 1, 1], [1])]))).rejects.toThrow(/5 sides/);
    await expect(open(await encodeGguf(new Map(), [floats('w'.repeat(64), [1], [1])]))).rejects.toThrow(/at most 63/);
    await expect(open(await encodeGguf(new Map(), [floats('w', [1], [1]), floats('w', [1], [1])]))).rejects.toThrow(/'w' is given twice/);
  });

  test('every cut of a file, naming what is cut', async () => {
    const bytes = await minimal();
    for (let length = 0; length < 0x122; length++) await expect(open(bytes.subarray(0, length))).rejects.toThrow(FormatError);
    await expect(open(bytes.subarray(0, 0x118))).rejects.toThrow(/tensor 'y' ends at/);
    await expect(open(bytes.subarray(0, 0x122))).resolves.toBeDefined(); // padding after the last tensor may be missing
  });

  test('a flipped header byte parses or is a typed error', async () => {
    const bytes = await minimal();
    let parsed = 0;
    for (let at = 0; at < 0x100; at++) {
      for (const mask of [1, 2, 8, 0x20, 0x80, 0xff]) {
        const broken = bytes.slice();
        broken[at]! ^= mask;
        await open(broken).then(
          () => parsed++,
          (error: unknown) => expect(NiwakiError.isInstance(error)).toBe(true),
        );
      }
    }
    expect(parsed).toBeGreaterThan(0);
  });
});

test('names go both ways', () => {
  for (const name of [
    'token_embd.weight',
    'output_norm.weight',
    'output.weight',
    'blk.11.attn_k.bias',
    'blk.0.ffn_gate.weight',
    'blk.3.attn_q_norm.weight',
  ]) {
    expect(ggufName(hfName(name)!)).toBe(name);
  }
  expect(hfName('blk.11.attn_k.bias')).toBe('model.layers.11.self_attn.k_proj.bias');
  expect([
    hfName('blk.0.constructor.weight'),
    hfName('rope_freqs.weight'),
    hfName('output'),
    ggufName('model.layers.0.mlp.gate.weight'),
  ]).toEqual([undefined, undefined, undefined, undefined]);
});

/** One layer, 2 heads of 8, 1 kv head. */
const llamaMetadata = (more: readonly (readonly [string, GgufValue])[] = []): Map<string, GgufValue> =>
  new Map<string, GgufValue>([
    ['general.architecture', text('llama')],
    ['llama.block_count', u32(1)],
    ['llama.context_length', { type: 'u64', value: 256 }],
    ['llama.embedding_length', u32(16)],
    ['llama.feed_forward_length', u32(32)],
    ['llama.attention.head_count', u32(2)],
    ['llama.attention.head_count_kv', u32(1)],
    ['llama.attention.layer_norm_rms_epsilon', f32(1e-5)],
    ...more,
  ]);
const embedding = floats('token_embd.weight', [4, 16], count(64));
const asHf = async (bytes: Uint8Array) => ggufAsHf(await open(bytes), 'x.gguf');

describe('as a Hugging Face model', () => {
  test('interleaved rows of q and k are put back head by head, k by its own heads, at any range', async () => {
    const stored = [0, 4, 1, 5, 2, 6, 3, 7]; // row i of a head in the file is this row of the model
    const row = (head: number, i: number): number[] => count(16, (column) => 1000 * head + 100 * i + column);
    const tensors = [
      embedding,
      floats(
        'blk.0.attn_q.weight',
        [16, 16],
        [0, 1].flatMap((head) => stored.flatMap((i) => row(head, i))),
      ),
      floats(
        'blk.0.attn_k.weight',
        [8, 16],
        stored.flatMap((i) => row(0, i)),
      ),
      floats(
        'blk.0.attn_v.weight',
        [8, 16],
        stored.flatMap((i) => row(0, i)),
      ),
      floats(
        'blk.0.attn_q.bias',
        [16],
        [0, 1].flatMap((head) => stored.map((i) => 10 * head + i)),
      ),
    ];
    const model = await asHf(await encodeGguf(llamaMetadata(), tensors));
    const read = async (name: string, from?: number, to?: number): Promise<number[]> => {
      const raw = await model.read(`model.layers.0.self_attn.${name}`, from === undefined ? undefined : [from, to!]);
      return [...decodeFloats({ ...raw, shape: [raw.bytes.byteLength / 4] })];
    };
    const inOrder = (head: number): number[] => count(8).flatMap((i) => row(head, i));
    expect(await read('q_proj.weight')).toEqual([...inOrder(0), ...inOrder(1)]);
    expect(await read('k_proj.weight')).toEqual(inOrder(0));
    expect(await read('v_proj.weight')).toEqual(stored.flatMap((i) => row(0, i)));
    expect(await read('q_proj.bias')).toEqual([...count(8), ...count(8, (i) => 10 + i)]);
    const whole = await read('q_proj.weight');
    for (const [from, to] of [
      [0, 4],
      [60, 68],
      [508, 516],
      [512, 1024],
      [100, 100],
      [4, 1020],
    ] as const) {
      expect(await read('q_proj.weight', from, to)).toEqual(whole.slice(from / 4, to / 4));
    }
  });

  test('rows of packed blocks move whole', async () => {
    const blocks = Uint8Array.from(count(8 * 18, (i) => Math.floor(i / 18)));
    const metadata = llamaMetadata([['llama.attention.key_length', u32(8)]])
      .set('llama.embedding_length', u32(32))
      .set('llama.attention.head_count', u32(1));
    const packed: LazyTensor = { name: 'blk.0.attn_q.weight', dtype: 'Q4_0', shape: [8, 32], read: async () => blocks };
    const model = await asHf(await encodeGguf(metadata, [floats('token_embd.weight', [2, 32], count(64)), packed]));
    const { bytes, dtype } = await model.read('model.layers.0.self_attn.q_proj.weight');
    expect(dtype).toBe('Q4_0');
    expect(count(8, (row) => bytes[row * 18]!)).toEqual([0, 2, 4, 6, 1, 3, 5, 7]);
  });

  test('the config says what the metadata says, with the defaults of the format', async () => {
    const model = await asHf(await encodeGguf(llamaMetadata(), [embedding]));
    expect(model.config).toMatchObject({
      model_type: 'llama',
      architectures: ['LlamaForCausalLM'],
      vocab_size: 4,
      hidden_size: 16,
      intermediate_size: 32,
      num_hidden_layers: 1,
      num_attention_heads: 2,
      num_key_value_heads: 1,
      head_dim: 8,
      max_position_embeddings: 256,
      rms_norm_eps: 1e-5,
      rope_theta: 10_000,
      tie_word_embeddings: true,
      attention_bias: false,
    });
    const untied = await asHf(await encodeGguf(llamaMetadata(), [embedding, floats('output.weight', [4, 16], count(64))]));
    expect(untied.config['tie_word_embeddings']).toBe(false);
    expect((await asHf(await encodeGguf(llamaMetadata(), [embedding, floats('extra.weight', [1], [1])]))).unknown).toEqual([
      'extra.weight',
    ]);
  });

  test('rope scaling: linear, yarn, and a kind that is not read', async () => {
    const scaled = async (...more: [string, GgufValue][]) =>
      (await asHf(await encodeGguf(llamaMetadata(more), [embedding]))).config['rope_scaling'];
    expect(await scaled(['llama.rope.scaling.type', text('linear')], ['llama.rope.scaling.factor', f32(2)])).toEqual({
      rope_type: 'linear',
      factor: 2,
    });
    expect(await scaled(['llama.rope.scale_linear', f32(4)])).toEqual({ rope_type: 'linear', factor: 4 });
    expect(await scaled(['llama.rope.scaling.type', text('none')])).toBeUndefined();
    const yarn = [
      ['llama.rope.scaling.type', text('yarn')],
      ['llama.rope.scaling.factor', f32(4)],
      ['llama.rope.scaling.original_context_length', u32(64)],
    ] as [string, GgufValue][];
    expect(await scaled(...yarn)).toEqual({ rope_type: 'yarn', factor: 4, original_max_position_embeddings: 64 });
    await expect(scaled(['llama.rope.scaling.type', text('longrope')])).rejects.toThrow(/rope scaling 'longrope'/);
  });

  test('a table of divisors becomes the Llama 3 rule it came from, or a table again', async () => {
    const rope = { theta: 10_000, headSize: 8 };
    const divisors = llama3Divisors({ factor: 8, low: 1, high: 4, trained: 64 }, rope);
    expect(divisors.map((divisor) => Number(divisor.toFixed(4)))).toEqual([1, 7.6674, 8, 8]);
    const scaled = async (table: number[]) =>
      (await asHf(await encodeGguf(llamaMetadata(), [embedding, floats('rope_freqs.weight', [table.length], table)]))).config[
        'rope_scaling'
      ];
    expect(await scaled(divisors)).toEqual({
      rope_type: 'llama3',
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 64,
    });
    expect(await scaled([1, 3, 2, 5])).toMatchObject({
      rope_type: 'longrope',
      short_factor: [1, 3, 2, 5],
      long_factor: [1, 3, 2, 5],
      attention_factor: 1,
    });
    await expect(scaled([1, 2])).rejects.toThrow(/4 positive divisors/);
    await expect(scaled([1, 2, 0, 4])).rejects.toThrow(FormatError);
    const real = { theta: 500_000, headSize: 64 };
    expect(fitLlama3(llama3Divisors({ factor: 32, low: 1, high: 4, trained: 8192 }, real).map(Math.fround), real)).toEqual({
      factor: 32,
      low: 1,
      high: 4,
      trained: 8192,
    });
  });

  test('what is not read is named: architecture, experts, missing and mistyped keys', async () => {
    const refused = async (key: string, value: GgufValue | undefined): Promise<void> => {
      const metadata = llamaMetadata();
      if (value === undefined) metadata.delete(key);
      else metadata.set(key, value);
      await asHf(await encodeGguf(metadata, [embedding]));
    };
    await expect(refused('general.architecture', text('mamba'))).rejects.toThrow(/architecture "mamba"/);
    await expect(refused('llama.expert_count', u32(8))).rejects.toThrow(/8 experts/);
    await expect(refused('split.count', { type: 'u16', value: 3 })).rejects.toThrow(/one of 3 parts/);
    await expect(refused('general.type', text('adapter'))).rejects.toThrow(/an 'adapter', not a model/);
    await expect(refused('llama.rope.dimension_count', u32(4))).rejects.toThrow(/4 of the 8 numbers/);
    await expect(refused('llama.block_count', undefined)).rejects.toThrow(/'llama.block_count' is missing/);
    await expect(refused('llama.block_count', text('x'))).rejects.toThrow(/'llama.block_count' is string, expected a number/);
    await expect(ggufAsHf(await open(await encodeGguf(llamaMetadata(), [])), 'x')).rejects.toThrow(/token_embd/);
  });
});
