import { describe, expect, it } from 'vitest';
import { decodePacked, ggufBlocks, NumericError, ShapeError, type GgufFormat } from '@niwaki/tensor';
import { encodeGgufBlocks, type GgufEncoded } from '../src/index.ts';

const hex = (bytes: Uint8Array): string => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');

const encode = (values: Float32Array, format: GgufEncoded, width = values.length): Promise<Uint8Array> =>
  encodeGgufBlocks('w.weight', [values.length / width, width], async ([from, to]) => values.slice(from * width, to * width), format);

function decode(format: GgufFormat, blocks: Uint8Array): Float32Array {
  const { elements, bytes } = ggufBlocks[format];
  const out = new Float32Array((blocks.length / bytes) * elements);
  decodePacked({ format, out: 1, in: out.length, blockSize: elements }, { blocks }, 0, out.length, out);
  return out;
}

const total = (values: Float32Array): number => values.reduce((sum, value) => sum + value, 0);
const half = (value: number): [number, number] => (value === 0.25 ? [0x00, 0x34] : value === 0.5 ? [0x00, 0x38] : [0x00, 0x3c]);

describe('writing GGUF blocks', () => {
  const ramp = Float32Array.from({ length: 32 }, (_, i) => (i - 16) / 8);

  it.each([
    ['Q4_0', '0034809191a2a2b3b3c4c4d5d5e6e6f7f7f8', -0.25],
    ['Q4_1', '223400c080809191a2a2b3b3c4c4d5d5e6e6f7f7', -2.0078125],
    ['Q8_0', '082481899199a1a9b1b9c0c8d0d8e0e8f0f8000810182028303840474f575f676f77', -1.99987793],
  ] as const)('%s gives the bytes of the reference quantizer', async (format, bytes, sum) => {
    const blocks = await encode(ramp, format);
    expect(hex(blocks)).toBe(bytes);
    expect(total(decode(format, blocks))).toBeCloseTo(sum, 7);
  });

  it('rounds to BF16 and F16 with ties to even', async () => {
    const values = Float32Array.of(Math.PI, 1, -2.71828, 0.001);
    expect(hex(await encode(values, 'BF16'))).toBe('4940803f2ec0833a');
    expect([...decode('F16', await encode(Float32Array.of(1 + 2 ** -11, 1 + 3 * 2 ** -11, 2 ** -24, -0.1), 'F16'))]).toEqual([
      1,
      1 + 2 ** -9,
      2 ** -24,
      -0.0999755859375,
    ]);
  });

  it.each(['Q4_0', 'Q4_1', 'Q8_0'] as const)('%s of zeros is exactly zero', async (format) => {
    const blocks = await encode(new Float32Array(64), format);
    expect([...decode(format, blocks)].every((value) => value === 0)).toBe(true);
  });

  it('Q4_0 of zeros holds the code of zero, and the negative zero that 0 / -8 is', async () => {
    expect(hex(await encode(new Float32Array(64), 'Q4_0'))).toBe(`0080${'88'.repeat(16)}`.repeat(2));
  });

  it.each([
    ['Q4_0', 0.00739],
    ['Q4_1', 0.00613],
    ['Q8_0', 2.9e-5],
  ] as const)('%s has the known error on normal values', async (format, expected) => {
    let state = 7;
    const uniform = (): number => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return (state + 0.5) / 2 ** 32;
    };
    const values = Float32Array.from({ length: 2 ** 18 }, () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
    const decoded = decode(format, await encode(values, format));
    const error =
      values.reduce((sum, value, i) => sum + (value - decoded[i]!) ** 2, 0) / values.reduce((sum, value) => sum + value ** 2, 0);
    expect(Math.abs(error / expected - 1)).toBeLessThan(0.03);
  });

  it('refuses rows that do not hold whole blocks, values that are not finite and scales too large for a half', async () => {
    await expect(encode(new Float32Array(48), 'Q8_0', 48)).rejects.toThrow(ShapeError);
    await expect(encode(new Float32Array(32).fill(NaN), 'Q8_0')).rejects.toThrow(NumericError);
    await expect(encode(new Float32Array(32).fill(1e6), 'Q4_0')).rejects.toThrow('does not fit a half float');
    await expect(encode(new Float32Array(4).fill(1e6), 'F16')).rejects.toThrow('does not fit a half float');
    await expect(encode(new Float32Array(4).fill(1e6), 'BF16')).resolves.toHaveLength(8);
  });
});

describe('reading GGUF blocks made by hand', () => {
  const A = (i: number): number => (7 * i + 3) & 255;
  const L = (i: number): number => (5 * i + 1) & 255;
  const G = (i: number): number => (11 * i + 2) & 255;
  const run = (length: number, value: (i: number) => number): number[] => Array.from({ length }, (_, i) => value(i));
  const fromHex = (text: string): number[] => text.match(/../g)!.map((byte) => parseInt(byte, 16));

  const cases: [GgufFormat, number[], Record<number, number>, number][] = [
    ['Q4_0', [...half(0.5), ...run(16, A)], { 0: -2.5, 1: 1, 15: 2, 16: -4, 31: -1 }, -44],
    ['Q4_1', [...half(0.5), 0x00, 0xbd, ...run(16, A)], { 0: 0.25, 1: 3.75, 16: -1.25 }, 44],
    ['Q8_0', [...half(0.25), ...run(32, (i) => (9 * i - 100) & 255)], { 0: -25, 15: 8.75, 31: -19.25 }, -68],
    [
      'Q4_K',
      [...half(1), ...half(0.5), ...fromHex('818283c44041c2c30112e3ff'), ...run(128, A)],
      { 0: 3, 1: 10, 31: 12, 32: -0.5, 63: 25.5, 64: 8, 96: 54.5, 128: 91, 160: 399.5, 192: 74, 224: 598.5, 255: 409.5 },
      38704,
    ],
    [
      'Q6_K',
      [...run(128, L), ...run(64, G), ...run(16, (j) => (j - 8) & 255), ...half(0.5)],
      { 0: -4, 1: 40, 16: -3.5, 31: -98, 32: 93, 64: 64, 96: 22, 127: 6.5, 128: 0, 144: 0.5, 160: -31, 192: 8, 224: -6, 255: 24.5 },
      434,
    ],
  ];

  it.each(cases)('%s gives the values of the format', (format, bytes, at, sum) => {
    const values = decode(format, Uint8Array.from(bytes));
    for (const [e, value] of Object.entries(at)) expect(values[Number(e)]).toBe(value);
    expect(total(values)).toBe(sum);
  });
});
