import { describe, expect, it } from 'vitest';
import { dynamicMap as dynamicMapOf } from '@niwaki/tensor';
import { encodeCodebook4 } from '@niwaki/weights';
import { fp4Codebook, nf4Codebook } from '../src/index.ts';
import { pythonFloat } from '../src/quant-state.ts';
import { hasShared, sharedJson } from '../../testing/src/shared.ts';
import { sharedTensors } from '../../testing/src/shared-tensors.ts';

const dynamicMap = dynamicMapOf({ signed: true });

describe.skipIf(!hasShared)('the tables', () => {
  it('are those that bitsandbytes writes, bit for bit', () => {
    const name = 'model.layers.0.mlp.gate_proj.weight';
    const table = (folder: string, key: string): Float32Array =>
      sharedTensors(`golden/quant/${folder}/model.safetensors`).get(`${name}.${key}`)!.values();
    expect([...nf4Codebook]).toEqual([...table('bnb-nf4', 'quant_map')]);
    // toEqual tells -0 from 0.
    expect([...fp4Codebook]).toEqual([...table('bnb-fp4', 'quant_map')]);
    expect([...dynamicMap]).toEqual([...table('bnb-nf4-doublequant', 'nested_quant_map')]);
    const { dynamic_map } = sharedJson<{ dynamic_map: number[] }>('golden/quant/bnb-nf4-big/dynamic_map.json');
    expect([...dynamicMap]).toEqual(dynamic_map.map(Math.fround));
  });
});

it.each([
  ['nf4', nf4Codebook, '000001111111122222333344455566677788999aaabbbccccddddeeeeeeeffff', 0.107368],
  ['fp4', fp4Codebook, 'bbbbbbaaaaaaaadddddccccfffeeee9901166667774444555552222222233333', 0.130494],
] as const)('the codes of a ramp in %s are those worked out by hand, and so is what they lose', async (_, codebook, expected, lost) => {
  const ramp = Float32Array.from({ length: 64 }, (__, i) => (i - 32) / 16);
  const { codes, absmax } = await encodeCodebook4('w', [1, 64], async () => ramp, { blockSize: 64, codebook });
  const nibbles = Array.from(codes!, (byte) => byte.toString(16).padStart(2, '0')).join('');
  expect(nibbles).toBe(expected);
  expect([...absmax!]).toEqual([2]);
  const squares = Array.from(nibbles, (nibble, i) => (2 * codebook[parseInt(nibble, 16)]! - ramp[i]!) ** 2);
  expect(Math.sqrt(squares.reduce((sum, square) => sum + square) / 64)).toBeCloseTo(lost, 6);
});

describe('the dynamic map', () => {
  it('has 256 ascending values, 127 of them negative, with one zero', () => {
    expect(dynamicMap).toHaveLength(256);
    for (let i = 1; i < 256; i++) expect(dynamicMap[i]!).toBeGreaterThan(dynamicMap[i - 1]!);
    expect(dynamicMap[127]).toBe(0);
    expect([dynamicMap[0], dynamicMap[255]]).toEqual([Math.fround(-0.992968738), 1]);
    expect([dynamicMap[128], dynamicMap[129], dynamicMap[130]].map((value) => value!.toPrecision(3))).toEqual([
      '5.50e-7',
      '0.00000325',
      '0.00000775',
    ]);
  });
});

describe('a Python float', () => {
  it.each([
    [2, '2.0'],
    [0, '0.0'],
    [-0, '-0.0'],
    [2.5823535919189453, '2.5823535919189453'],
    [0.0001, '0.0001'],
    [0.00001, '1e-05'],
    [1.25e-7, '1.25e-07'],
    [1e15, '1000000000000000.0'],
    [1e16, '1e+16'],
    [-1.5e300, '-1.5e+300'],
  ])('%d is written %s', (value, text) => {
    expect(pythonFloat(value)).toBe(text);
  });
});
