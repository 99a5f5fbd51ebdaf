import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { hasShared, sharedBytes, sharedJson } from '../../testing/src/shared.ts';
import { AbortError, DeviceError, FormatError, NiwakiError, type RawTensor } from '@niwaki/tensor';
import { describe, expect, test, vi } from 'vitest';
import {
  decodeFloats,
  decodeNumbers,
  dtypeBits,
  encodeFloats,
  encodeSafetensors,
  fileSink,
  fileSource,
  memorySource,
  nodeFolderSink,
  openSafetensors,
  openSharded,
  parseIndex,
  writeSafetensors,
  type LazyTensor,
} from '../src/index.ts';

const fromHex = (hex: string): Uint8Array => Uint8Array.from(Buffer.from(hex, 'hex'));
const toHex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const open = (bytes: Uint8Array) => openSafetensors(memorySource(bytes));
const header = (json: string, data: readonly number[] = []): Uint8Array => {
  const text = new TextEncoder().encode(json);
  const bytes = new Uint8Array(8 + text.length + data.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
  bytes.set(text, 8);
  bytes.set(data, 8 + text.length);
  return bytes;
};
const raw = (dtype: string, shape: number[], bytes: ArrayLike<number>): RawTensor => ({ dtype, shape, bytes: Uint8Array.from(bytes) });

interface Case {
  readonly name: string;
  readonly hex: string;
  readonly ours: 'accept' | 'reject';
  readonly tensors?: readonly [name: string, dtype: string, shape: number[], hex: string][];
}

describe.skipIf(!hasShared)('the accept and reject list of the reference', () => {
  const cases = hasShared ? sharedJson<Case[]>('golden/safetensors-cases.json') : [];
  test.each(cases.filter(({ ours }) => ours === 'reject'))('$name is refused', async ({ hex }) => {
    await expect(open(fromHex(hex))).rejects.toThrow(FormatError);
  });

  test.each(cases.filter(({ ours }) => ours === 'accept'))('$name reads as the reference reads it', async ({ hex, tensors }) => {
    const file = await open(fromHex(hex));
    const read: unknown[] = [];
    for (const name of [...file.names()].sort()) {
      const { dtype, shape, bytes } = await file.read(name);
      read.push([name, dtype, shape, toHex(bytes)]);
    }
    expect(read).toEqual(tensors);
  });

  test('a file of the reference writer comes out byte for byte the same when written again', async () => {
    for (const model of ['llama', 'bert-mlm', 'mixtral', 'vit-cls']) {
      const bytes = sharedBytes(`golden/models/${model}/model.safetensors`);
      const file = await open(bytes);
      const tensors = new Map<string, RawTensor>();
      for (const name of file.names()) tensors.set(name, await file.read(name));
      const again = await encodeSafetensors(tensors, { metadata: Object.fromEntries(file.metadata) });
      expect(Buffer.compare(again, bytes)).toBe(0);
    }
  });
});

describe('what a header must not say, each thing said in its own words and with the name of the tensor', () => {
  const one = (entry: string, data: number[] = [0, 0, 0, 0]): Uint8Array => header(`{"w":${entry}}`, data);
  const length = (bytes: number[]): Uint8Array => Uint8Array.from([...bytes, ...Array.from({ length: 8 }, () => 0)]);
  const two = (w: string, z: string): Uint8Array =>
    header(`{"w":{"dtype":"U8","shape":[2],"data_offsets":${w}},"z":{"dtype":"U8","shape":[2],"data_offsets":${z}}}`, [0, 0, 0, 0, 0]);

  test.each<[string, Uint8Array, RegExp]>([
    ['nothing at all', new Uint8Array(0), /at least 8 bytes, this one has 0/],
    ['a length beyond the file', fromHex('3c00000000000000'), /header says it has 60 bytes, the file only 8/],
    ['a length beyond any file', length([0, 0, 0, 0, 0xff, 0xff, 0xff, 0]), /more than 100000000/],
    ['no UTF-8', Uint8Array.from([1, 0, 0, 0, 0, 0, 0, 0, 0xff]), /header is not JSON/],
    ['half an object', header('{'), /header is not JSON/],
    ['a list', header('[]'), /header is not a JSON object/],
    ['padding of zeros', header('{}\0'), /header is not JSON/],
    ['no shape', one('{"dtype":"F32","data_offsets":[0,4]}'), /tensor 'w': shape is missing/],
    ['three offsets', one('{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}'), /tensor 'w': data_offsets must be two numbers/],
    ['a dtype in small letters', one('{"dtype":"u8","shape":[4],"data_offsets":[0,4]}'), /tensor 'w': unknown dtype "u8"/],
    ['a dtype of another format', one('{"dtype":"Q8","shape":[4],"data_offsets":[0,4]}'), /tensor 'w': unknown dtype "Q8"/],
    ['a side below 0', one('{"dtype":"F32","shape":[-2],"data_offsets":[0,4]}'), /tensor 'w': shape \[-2\]/],
    [
      'a first tensor after the start',
      one('{"dtype":"U8","shape":[3],"data_offsets":[1,4]}'),
      /tensor 'w' is at bytes \[1, 4\), expected to start at 0/,
    ],
    ['a hole', two('[0,2]', '[3,5]'), /tensor 'z' is at bytes \[3, 5\), expected to start at 2/],
    ['an overlap', two('[0,2]', '[1,3]'), /tensor 'z' is at bytes \[1, 3\), expected to start at 2/],
    ['an end before its begin', one('{"dtype":"U8","shape":[0],"data_offsets":[0,-1]}'), /tensor 'w': data_offsets \[0,-1\]/],
    [
      'too few bytes',
      one('{"dtype":"I32","shape":[2,2],"data_offsets":[0,4]}'),
      /tensor 'w': I32 \[2,2\] takes 16 bytes, its offsets span 4/,
    ],
    [
      'sides whose product overflows',
      one('{"dtype":"I32","shape":[2,18446744073709551614],"data_offsets":[0,4]}'),
      /tensor 'w': shape .* overflows/,
    ],
    ['fewer bytes than it says', one('{"dtype":"F32","shape":[1],"data_offsets":[0,4]}', [0, 0]), /the last is 'w'.*the file has/],
    ['more bytes than it says', one('{"dtype":"F32","shape":[1],"data_offsets":[0,4]}', [0, 0, 0, 0, 9]), /the last is 'w'.*the file has/],
    ['metadata that is a number', header('{"__metadata__":{"k":1}}'), /__metadata__ holds text only, 'k' is number/],
  ])('%s', async (_, bytes, message) => {
    await expect(open(bytes)).rejects.toThrow(message);
    await expect(open(bytes)).rejects.toThrow(FormatError);
  });
});

test('the writer lays tensors out widest first and pads the header with spaces', async () => {
  const tensors = new Map([
    ['a', raw('U8', [3], [1, 1, 1])],
    ['b', raw('F32', [1], [0, 0, 0, 0])],
    ['c', raw('I64', [2], [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])],
    ['d', raw('F16', [2], [0, 0, 0, 0])],
    ['e', raw('BOOL', [], [1])],
  ]);
  const bytes = await encodeSafetensors(tensors, { metadata: { k: 'v' } });
  expect(bytes.byteLength).toBe(340);
  expect(toHex(bytes.subarray(0, 8))).toBe('3001000000000000');
  const text = new TextDecoder().decode(bytes.subarray(8, 8 + 304));
  expect(text).toMatch(/\} {5}$/);
  const listed = Object.entries(JSON.parse(text) as Record<string, { data_offsets: number[] }>).slice(1);
  expect(listed.map(([name, { data_offsets }]) => [name, ...data_offsets])).toEqual([
    ['c', 0, 16],
    ['b', 16, 20],
    ['d', 20, 24],
    ['a', 24, 27],
    ['e', 27, 28],
  ]);
});

test('every type round-trips bit for bit, NaN payloads included', async () => {
  const tensors = new Map<string, RawTensor>();
  for (const [dtype, bits] of dtypeBits) {
    const bytes = Uint8Array.from({ length: bits }, (_, i) => (i * 37 + 129) & 255);
    tensors.set(dtype, { dtype, shape: [8], bytes });
  }
  tensors.set('nan', raw('F32', [2], [1, 0, 0xa0, 0x7f, 0xde, 0xad, 0xff, 0xff]));
  const bytes = await encodeSafetensors(tensors);
  const file = await open(bytes);
  for (const [name, given] of tensors) expect(toHex((await file.read(name)).bytes)).toBe(toHex(given.bytes));
  expect(file.metadata.get('format')).toBe('pt');
});

test('any byte offset decodes, also inside a buffer that does not start at zero', async () => {
  const values = { F32: [1.5, -2], F16: [1.5, -2], BF16: [1.5, -2], I64: [3, -9007199254740991] } as const;
  const data: number[] = [7];
  const entries = ['"u":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'];
  for (const [dtype, pair] of Object.entries(values)) {
    const bytes =
      dtype === 'I64'
        ? new Uint8Array(BigInt64Array.from(pair.map(BigInt)).buffer)
        : encodeFloats(Float32Array.from(pair), dtype as 'F32' | 'F16' | 'BF16');
    entries.push(`"${dtype}":{"dtype":"${dtype}","shape":[2],"data_offsets":[${data.length},${data.length + bytes.byteLength}]}`);
    data.push(...bytes);
  }
  let json = `{${entries.join()}}`;
  while (json.length % 4 !== 2) json += ' ';
  const whole = header(json, data);
  for (const shift of [0, 1, 2, 3, 5]) {
    const moved = new Uint8Array(whole.byteLength + shift);
    moved.set(whole, shift);
    const file = await open(moved.subarray(shift));
    for (const [dtype, pair] of Object.entries(values)) expect([...decodeNumbers(await file.read(dtype))]).toEqual([...pair]);
    expect([...decodeFloats(await file.read('F32'))]).toEqual([1.5, -2]);
  }
});

test('eight-bit floats decode to the values of their definitions', () => {
  const at = (dtype: string, byte: number): number => decodeFloats(raw(dtype, [1], [byte]))[0]!;
  expect(at('F8_E4M3', 0x7e)).toBe(448);
  expect(at('F8_E4M3', 0x7f)).toBeNaN();
  expect(at('F8_E4M3', 0x01)).toBe(2 ** -9);
  expect(at('F8_E5M2', 0x7b)).toBe(57344);
  expect(at('F8_E5M2', 0xfc)).toBe(-Infinity);
  expect(at('F8_E4M3FNUZ', 0x80)).toBeNaN();
  expect(at('F8_E4M3FNUZ', 0x7f)).toBe(240);
  expect(at('F8_E5M2FNUZ', 0x7f)).toBe(57344);
  expect(at('F8_E8M0', 0x80)).toBe(2);
});

test('a 64-bit integer beyond 2^53 is refused, not rounded', () => {
  const bytes = new Uint8Array(BigInt64Array.of(9007199254740993n).buffer);
  expect(() => decodeNumbers({ dtype: 'I64', shape: [1], bytes })).toThrow(/9007199254740993/);
});

test('rows are read by range, and a range outside the tensor is refused', async () => {
  const file = await open(await encodeSafetensors(new Map([['w', raw('U8', [3, 2], [1, 2, 3, 4, 5, 6])]])));
  expect([...(await file.read('w', [2, 4])).bytes]).toEqual([3, 4]);
  await expect(file.read('w', [2, 7])).rejects.toThrow(FormatError);
  await expect(file.read('x')).rejects.toThrow(/no tensor 'x'/);
});

test('a header with one flipped byte parses or throws a typed error', async () => {
  const bytes = await encodeSafetensors(
    new Map([
      [
        'layer.0',
        raw(
          'F32',
          [2, 2],
          Array.from({ length: 16 }, () => 1),
        ),
      ],
      ['b', raw('U8', [2], [1, 2])],
    ]),
  );
  const headerEnd = bytes.byteLength - 18;
  let parsed = 0;
  for (let at = 0; at < headerEnd; at++) {
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

test('a cut file is refused at every length', async () => {
  const bytes = await encodeSafetensors(new Map([['w', raw('U8', [5], [1, 2, 3, 4, 5])]]));
  for (let length = 0; length < bytes.byteLength; length++) await expect(open(bytes.subarray(0, length))).rejects.toThrow(FormatError);
});

test('a header of 100,000 tensors parses in well under a second', async () => {
  const entries = Array.from(
    { length: 100_000 },
    (_, i) => `"layer.${i}.weight":{"dtype":"U8","shape":[1],"data_offsets":[${i},${i + 1}]}`,
  );
  const text = new TextEncoder().encode(`{${entries.join()}}`);
  const bytes = new Uint8Array(8 + text.length + 100_000);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
  bytes.set(text, 8);
  const before = process.cpuUsage();
  expect((await open(bytes)).names()).toHaveLength(100_000);
  const { user } = process.cpuUsage(before); // processor time: a busy machine does not count
  expect(user / 1000).toBeLessThan(1500);
});

test('shared memory, repeated names, odd metadata and wrong sizes are refused by the writer', async () => {
  const bytes = new Uint8Array(4);
  const twice = new Map([
    ['a', { dtype: 'U8', shape: [4], bytes }],
    ['b', { dtype: 'U8', shape: [2], bytes: bytes.subarray(2) }],
  ]);
  await expect(encodeSafetensors(twice)).rejects.toThrow(/'a' and 'b' share memory/);
  await expect(encodeSafetensors(twice, { cloneShared: true })).resolves.toBeInstanceOf(Uint8Array);
  await expect(encodeSafetensors(new Map([['__metadata__', raw('U8', [1], [1])]]))).rejects.toThrow(FormatError);
  await expect(encodeSafetensors(new Map(), { metadata: { k: 1 as never } })).rejects.toThrow(FormatError);
  await expect(encodeSafetensors(new Map([['a', raw('F32', [2], [0, 0, 0, 0])]]))).rejects.toThrow(/takes 8 bytes, got 4/);
  await expect(encodeSafetensors(new Map([['a', raw('F4', [3], [0, 0])]]))).rejects.toThrow(/whole number of bytes/);
  await expect(encodeSafetensors(new Map([['a', raw('Q4_K', [1], [0])]]))).rejects.toThrow(/no dtype "Q4_K"/);
});

describe('files on disk', () => {
  const inFolder = async (run: (folder: string) => Promise<void>): Promise<void> => {
    const folder = await mkdtemp(join(tmpdir(), 'niwaki-'));
    await run(folder).finally(() => rm(folder, { recursive: true }));
  };
  const one = (read: LazyTensor['read']): LazyTensor => ({ name: 'w', dtype: 'U8', shape: [4], read });

  test('tensors are asked for one at a time, in pieces, and the file reads back', async () => {
    await inFolder(async (folder) => {
      const path = join(folder, 'm.safetensors');
      let live = 0;
      const lazy = (name: string): LazyTensor => ({
        name,
        dtype: 'U8',
        shape: [4],
        read: async function* () {
          expect(++live).toBe(1);
          yield Uint8Array.of(1, 2);
          yield Uint8Array.of(3, 4);
          live--;
        },
      });
      await writeSafetensors([lazy('b'), lazy('a')], await fileSink(path));
      const file = await openSafetensors(await fileSource(path));
      expect(file.names()).toEqual(['a', 'b']);
      expect([...(await file.read('b')).bytes]).toEqual([1, 2, 3, 4]);
      await file.close();
      expect(await readdir(folder)).toEqual(['m.safetensors']);
    });
  });

  test('a failure or an abort in the middle leaves the old file and nothing else', async () => {
    await inFolder(async (folder) => {
      const path = join(folder, 'm.safetensors');
      await writeFile(path, 'old');
      const broken = one(async () => {
        throw new Error('gone');
      });
      await expect(writeSafetensors([broken], await fileSink(path))).rejects.toThrow('gone');
      await expect(writeSafetensors([one(async () => new Uint8Array(3))], await fileSink(path))).rejects.toThrow(/takes 4 bytes/);
      const controller = new AbortController();
      const aborting = one(async () => {
        controller.abort();
        return new Uint8Array(4);
      });
      await expect(writeSafetensors([aborting], await fileSink(path), { signal: controller.signal })).rejects.toThrow(AbortError);
      expect(await readdir(folder)).toEqual(['m.safetensors']);
      expect(await readFile(path, 'utf8')).toBe('old');
    });
  });

  test('a disk that fills up leaves the old file and no other, and the error says what to do', async () => {
    await inFolder(async (folder) => {
      const path = join(folder, 'm.safetensors');
      await writeFile(path, 'old');
      const fs = process.getBuiltinModule('node:fs/promises');
      const open = fs.open;
      const spy = vi.spyOn(fs, 'open').mockImplementation(async (...args) => {
        const handle = await open(...args);
        let writes = 0;
        const write = handle.write.bind(handle);
        handle.write = (async (bytes: Uint8Array, offset: number) => {
          if (++writes > 1) throw Object.assign(new Error('no space left on device'), { code: 'ENOSPC' });
          return write(bytes, offset, Math.min(5, bytes.byteLength - offset)); // a short write, too
        }) as unknown as typeof handle.write;
        return handle;
      });
      const sink = await fileSink(path);
      const error: unknown = await writeSafetensors([one(async () => new Uint8Array(4))], sink).catch((thrown: unknown) => thrown);
      spy.mockRestore();
      expect(error).toBeInstanceOf(DeviceError);
      expect((error as DeviceError).help).toMatch(/disk is full/);
      expect(await readdir(folder)).toEqual(['m.safetensors']);
      expect(await readFile(path, 'utf8')).toBe('old');
    });
  });

  test('a folder that cannot be written is a typed error', async () => {
    const sink = await fileSink('/nowhere-at-all/x.safetensors').catch((error: unknown) => error);
    expect(sink).toBeInstanceOf(DeviceError);
    const folder = await nodeFolderSink(fileURLToPath(import.meta.url)).catch((error: unknown) => error);
    expect(folder).toBeInstanceOf(DeviceError);
    expect((folder as DeviceError).help).toMatch(/A file stands where a folder has to be/);
  });
});

describe('shards', () => {
  const shard = (name: string): Promise<Uint8Array> => encodeSafetensors(new Map([[name, raw('U8', [1], [name.charCodeAt(0)])]]));
  const index = (map: Record<string, string>): ReadonlyMap<string, string> =>
    parseIndex(new TextEncoder().encode(JSON.stringify({ metadata: { total_size: 1e15 }, weight_map: map })), 'index.json');

  test('an index joins its shards, and warns about tensors it does not list', async () => {
    const files: Record<string, Uint8Array> = { 'one.safetensors': await shard('a'), 'two.safetensors': await shard('b') };
    const openShard = async (name: string) => memorySource(files[name]!, { name });
    const source = await openSharded(index({ a: 'one.safetensors', b: 'two.safetensors' }), openShard);
    expect(source.names()).toEqual(['a', 'b']);
    expect([...(await source.read('b')).bytes]).toEqual([98]);
    files['two.safetensors'] = await encodeSafetensors(
      new Map([
        ['b', raw('U8', [1], [1])],
        ['c', raw('U8', [1], [1])],
      ]),
    );
    const warnings: string[] = [];
    const again = await openSharded(index({ a: 'one.safetensors', b: 'two.safetensors' }), openShard, {
      warn: (text) => warnings.push(text),
    });
    expect(again.names()).toEqual(['a', 'b']);
    expect(warnings).toEqual([expect.stringContaining('c')]);
    await expect(openSharded(index({ a: 'one.safetensors', z: 'two.safetensors' }), openShard)).rejects.toThrow(/z \(two\.safetensors\)/);
  });

  test.each(['../x.safetensors', '/etc/passwd', 'a\\b', 'https://x/y', 'C:x', '..', ''])('a shard named %j is refused', (name) => {
    expect(() => index({ a: name })).toThrow(FormatError);
  });

  test('an index that is no map of names is refused', () => {
    expect(() => index({ a: 1 as never })).toThrow(/weight_map/);
    expect(() => parseIndex(new TextEncoder().encode('[]'), 'index.json')).toThrow(FormatError);
  });
});
