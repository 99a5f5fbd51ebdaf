import { describe, expect, it } from 'vitest';
import { NumericError, decodePacked, dynamicMap, type PackedParts, type PackedShape } from '@niwaki/tensor';
import { encodeCodebook4, type RowReader } from '../src/index.ts';
import { hasShared } from '../../testing/src/shared.ts';
import { sharedTensors } from '../../testing/src/shared-tensors.ts';
import { nf4 } from './nf4.ts';

const fp4 = Float32Array.from([0, 0.0625, 8, 12, 4, 6, 2, 3, -0, -0.0625, -8, -12, -4, -6, -2, -3], (value) => value / 12);

const reader =
  (values: Float32Array, width: number): RowReader =>
  async ([from, to]) =>
    values.slice(from * width, to * width);

const encode = (values: Float32Array, shape: readonly [number, number], options: Partial<Parameters<typeof encodeCodebook4>[3]> = {}) =>
  encodeCodebook4('w', shape, reader(values, shape[1]), { blockSize: 64, codebook: nf4, ...options });

const hex = (bytes: Uint8Array): string => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');

function decode(parts: PackedParts, [out, width]: readonly [number, number], blockSize = 64): Float32Array {
  const shape: PackedShape = {
    format: parts.nestedMap === undefined ? 'codebook4' : 'codebook4-nested',
    out,
    in: width,
    blockSize,
  };
  const values = new Float32Array(out * width);
  decodePacked(shape, parts, 0, values.length, values);
  return values;
}

const rms = (a: Float32Array, b: Float32Array): number => Math.sqrt(a.reduce((sum, value, i) => sum + (value - b[i]!) ** 2, 0) / a.length);

/** Standard normal, from a small generator of its own. */
function normal(length: number, seed: number): Float32Array {
  let state = seed >>> 0;
  const uniform = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state + 0.5) / 2 ** 32;
  };
  return Float32Array.from({ length }, () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
}

describe('four-bit codes', () => {
  const ramp = Float32Array.from({ length: 64 }, (_, i) => (i - 32) / 16);

  it('of a ramp are the bytes worked out by hand, for nf4 and fp4', async () => {
    const normalFloat = await encode(ramp, [4, 16]);
    expect(hex(normalFloat.codes!)).toBe('000001111111122222333344455566677788999aaabbbccccddddeeeeeeeffff');
    expect([...normalFloat.absmax!]).toEqual([2]);
    expect(rms(decode(normalFloat, [4, 16]), ramp)).toBeCloseTo(0.107368, 6);
    const float4 = await encode(ramp, [4, 16], { codebook: fp4 });
    expect(hex(float4.codes!)).toBe('bbbbbbaaaaaaaadddddccccfffeeee9901166667774444555552222222233333');
    expect(rms(decode(float4, [4, 16]), ramp)).toBeCloseTo(0.130494, 6);
  });

  it('take the lower entry at a midpoint', async () => {
    const between = Math.fround(Math.fround(nf4[8]! + nf4[9]!) / 2);
    const above = new Float32Array(new Uint32Array(Float32Array.of(between).buffer).map((bits) => bits + 1).buffer)[0]!;
    const values = new Float32Array(64);
    values.set([1, between, above]);
    const { codes } = await encode(values, [1, 64]);
    expect(hex(codes!.subarray(0, 2))).toBe('f897');
  });

  it('of the eighths from one to eight are the nearest entries', async () => {
    const values = new Float32Array(64);
    for (let i = 0; i < 8; i++) values[i] = (i + 1) / 8;
    const { codes } = await encode(values, [1, 64]);
    // 7/8 is nearer to 1 than to 0.723, and 1/2 to 0.4407 than to 0.5626.
    expect(hex(codes!)).toBe(`9abcdeff${'77'.repeat(28)}`);
  });

  it('in fp4 are one zero for what is just above 0 and another for what is just below, and both decode to 0', async () => {
    const values = new Float32Array(64);
    values.set([1, 1e-4, -1e-4, 0]);
    const parts = await encode(values, [1, 64], { codebook: fp4 });
    expect(hex(parts.codes!.subarray(0, 2))).toBe('3800');
    expect(Array.from(decode(parts, [1, 64]).subarray(0, 4), Math.abs)).toEqual([1, 0, 0, 0]);
  });

  it('of zeros mean zero, and an odd count is paired with zero', async () => {
    const { codes, absmax } = await encode(new Float32Array(15), [3, 5]);
    expect(hex(codes!)).toBe('7777777777777777');
    expect([...absmax!]).toEqual([0]);
  });

  it('run over the flattened matrix, in blocks that straddle rows and reads', async () => {
    const [out, width] = [37, 29];
    const values = normal(out * width, 1);
    const byRows = await encode(values, [out, width]);
    const flat = await encode(values, [1, out * width]);
    expect(hex(byRows.codes!)).toBe(hex(flat.codes!));
    expect(byRows.absmax).toEqual(flat.absmax);
    // Runs of rows are cut at about half a million entries; a wide matrix needs several.
    const wide = normal(3 * 400_001, 2);
    const [several, one] = [await encode(wide, [3, 400_001]), await encode(wide, [1, 3 * 400_001])];
    expect(several.absmax).toEqual(one.absmax);
    expect(Buffer.compare(several.codes!, one.codes!)).toBe(0);
  });

  it('are the same after widening and quantizing again', async () => {
    const values = normal(64 * 64, 3);
    const once = await encode(values, [64, 64]);
    const twice = await encode(decode(once, [64, 64]), [64, 64]);
    expect(hex(twice.codes!)).toBe(hex(once.codes!));
    expect(twice.absmax).toEqual(once.absmax);
  });

  it.each([
    [64, 'nf4', 0.00845],
    [128, 'nf4', 0.00915],
    [256, 'nf4', 0.00977],
    [64, 'fp4', 0.0149],
  ] as const)('at blocks of %i in %s have the known error on normal values', async (blockSize, book, expected) => {
    const values = normal(2 ** 19, 4);
    const parts = await encode(values, [512, 1024], { blockSize, codebook: book === 'nf4' ? nf4 : fp4 });
    const power = values.reduce((sum, value) => sum + value ** 2, 0) / values.length;
    const relative = rms(decode(parts, [512, 1024], blockSize), values) ** 2 / power;
    expect(Math.abs(relative / expected - 1)).toBeLessThan(0.03);
  });

  it.each([NaN, Infinity, -Infinity])('refuse %s by name and place', async (bad) => {
    const values = new Float32Array(6 * 7);
    values[5 * 7 + 2] = bad;
    await expect(encode(values, [6, 7])).rejects.toThrow(NumericError);
    await expect(encode(values, [6, 7])).rejects.toThrow(`'w' holds ${bad} at [5,2]`);
  });
});

describe('nested statistics', () => {
  const map = dynamicMap({ signed: true });

  it('of four absmax are the ones worked out by hand', async () => {
    const values = new Float32Array(4 * 64);
    for (let block = 0; block < 4; block++) values[block * 64 + 3] = block + 1;
    const parts = await encode(values, [4, 64], { nestedMap: map });
    expect([...parts.nestedOffset!]).toEqual([2.5]);
    expect([...parts.nestedAbsmax!]).toEqual([1.5]);
    expect([...parts.absmax!]).toEqual([0, 47, 207, 255]);
    const widened = decode(parts, [4, 64]);
    expect([0, 1, 2, 3].map((block) => widened[block * 64 + 3]!.toFixed(7))).toEqual(['1.0105469', '2.0019531', '2.9980469', '4.0000000']);
  });

  it('change the error on normal values by less than a thousandth', async () => {
    const values = normal(2 ** 19, 4);
    const errorWith = async (options: Partial<Parameters<typeof encodeCodebook4>[3]>): Promise<number> =>
      rms(decode(await encode(values, [512, 1024], options), [512, 1024]), values) ** 2;
    const [plain, nested] = [await errorWith({}), await errorWith({ nestedMap: map })];
    expect(nested).not.toBe(plain);
    expect(Math.abs(nested / plain - 1)).toBeLessThan(1e-3);
  });

  it.skipIf(!hasShared)('of 300 blocks are those of bitsandbytes, byte for byte', async () => {
    const file = sharedTensors('golden/quant/bnb-nf4-big/tensors.safetensors');
    const parts = await encode(file.get('original')!.values(), [75, 256], { nestedMap: map });
    expect(hex(parts.codes!)).toBe(hex(file.get('w.weight')!.bytes));
    expect(parts.nestedAbsmax).toEqual(file.get('w.weight.nested_absmax')!.values());
    const state = JSON.parse(new TextDecoder().decode(file.get('w.weight.quant_state.bitsandbytes__nf4')!.bytes)) as {
      nested_offset: number;
    };
    expect(parts.nestedOffset![0]).toBe(state.nested_offset);
    expect([...parts.absmax!]).toEqual([...file.get('w.weight.absmax')!.bytes]);
  });
});
