import { describe, expect, it } from 'vitest';
import {
  decodePacked,
  denseParameter,
  div,
  dynamicMap,
  matMul,
  memory,
  recordTape,
  tensor1d,
  tensor2d,
  tidy,
  type PackedShape,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import {
  createCall,
  denseWeight,
  disposeWeight,
  encodeAffine,
  encodeCodebook4,
  encodeGgufBlocks,
  ggufBlock,
  type EncodeAffineOptions,
  type Weight,
} from '@niwaki/weights';
import type { Site } from '@niwaki/nn';
import { fp4, fp4Codebook, nf4, nf4Codebook, rtn } from '../src/index.ts';
import { searchScales } from '../src/awq.ts';
import { gpuMissing } from '../../testing/src/gpu.ts';

const missing = await gpuMissing();
const shape = [24, 96] as const;
const source = Float32Array.from({ length: shape[0] * shape[1] }, (_, i) => Math.sin(0.37 * i + 1) * (1 + (i % 7)));
const call = createCall({ batch: {} });
const rows = async ([from, to]: readonly [number, number]): Promise<Float32Array> => source.slice(from * shape[1], to * shape[1]);
const f32 = async (t: Tensor): Promise<number[]> => [...(await t.data())];

async function distance(a: Tensor, b: Tensor): Promise<number> {
  const [x, y] = [await f32(a), await f32(b)];
  expect(x).toHaveLength(y.length);
  return Math.max(...x.map((value, i) => Math.abs(value - y[i]!))) / Math.max(1, ...y.map(Math.abs));
}

/** f32 sums of 96 products in the order of the device. */
const tolerance = 5e-6;

describe.skipIf(missing)('quantized weights on WebGPU', () => {
  const base = (): Weight => denseWeight(denseParameter('m.weight', tensor2d(source, [...shape]), { role: 'matrix' }));
  const site = (weight: Weight): Site => ({ path: 'm', point: 'linear', weight, inputId: 'm' });

  it.each([
    ['nf4', nf4({ doubleQuant: false }), nf4Codebook, false],
    ['nf4, nested', nf4(), nf4Codebook, true],
    ['fp4, nested', fp4(), fp4Codebook, true],
  ] as const)('%s stores the bytes of the host, and multiplies as what they mean', async (_, method, codebook, nested) => {
    const before = memory().numTensors;
    const dense = base();
    const weight = (await method.make(site(dense), {})).weight!;
    const parts = await encodeCodebook4('m.weight', shape, rows, {
      blockSize: 64,
      codebook,
      ...(nested && { nestedMap: dynamicMap({ signed: true }) }),
    });
    expect([...(await weight.parts['weight']!.raw()).bytes]).toEqual([...parts.codes!]);
    const packed: PackedShape = { format: nested ? 'codebook4-nested' : 'codebook4', out: shape[0], in: shape[1], blockSize: 64 };
    const widened = new Float32Array(source.length);
    decodePacked(packed, parts, 0, widened.length, widened);
    await expectReads(weight, widened);
    disposeWeight(dense);
    disposeWeight(weight);
    expect(memory().numTensors).toBe(before);
  });

  it.each([
    ['asymmetric', rtn({ bits: 3, groupSize: 32 })],
    ['symmetric', rtn({ bits: 2, groupSize: 'row', symmetric: true })],
  ] as const)('%s integers store the bytes of the host, and multiply as what they mean', async (_, method) => {
    const dense = base();
    const weight = (await method.make(site(dense), {})).weight!;
    const { bits, groupSize, grid } = weight.options as unknown as EncodeAffineOptions;
    const parts = await encodeAffine('m.weight', shape, rows, { bits, groupSize, grid });
    expect([...(await weight.parts['qweight']!.raw()).bytes]).toEqual([...parts.codes]);
    const packed: PackedShape = {
      format: parts.zeros ? 'affine' : 'affine-symmetric',
      out: shape[0],
      in: shape[1],
      blockSize: groupSize,
      bits,
    };
    const widened = new Float32Array(source.length);
    decodePacked(packed, parts, 0, widened.length, widened);
    await expectReads(weight, widened);
    for (const w of [dense, weight]) disposeWeight(w);
  });

  it('the search of AWQ chooses as on the host', async () => {
    const before = memory().numTensors;
    const x = tensor2d([8, 0.5, -1, 0.25, -6, 1, 0.5, -0.5, 10, -0.5, 1, 1], [3, 4]);
    const w = tensor2d([0.31, -0.9, 0.44, 0.75, -0.62, 0.15, 0.8, -0.27], [2, 4]);
    const gram = tidy(() => div(matMul(x, x, true, false), 3)) as Tensor2D;
    const absMean = tensor1d([8, 2 / 3, 2.5 / 3, 1.75 / 3]);
    const { ratio, losses } = await searchScales([w], { gram, absMean, bits: 2, groupSize: 4 });
    expect(ratio).toBe(0.3);
    expect(losses[0]).toBeCloseTo(2.419446, 3);
    expect(losses[6]).toBeCloseTo(0.187865, 3);
    for (const t of [x, w, gram, absMean]) t.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it.each(['F16', 'BF16', 'Q4_0', 'Q4_1', 'Q8_0'] as const)('%s blocks multiply as what they mean', async (format) => {
    const blocks = await encodeGgufBlocks('m.weight', shape, rows, format);
    const weight = ggufBlock('m', shape, format, blocks);
    const widened = new Float32Array(source.length);
    decodePacked({ format, out: shape[0], in: shape[1], blockSize: 32 }, { blocks }, 0, widened.length, widened);
    await expectReads(weight, widened);
    disposeWeight(weight);
  });

  /** Forward, backward, a tile and a lookup. */
  async function expectReads(weight: Weight, widened: Float32Array): Promise<void> {
    const w = tensor2d(widened, [...shape]);
    const [x, dy] = [tensor2d(source.slice(0, 5 * shape[1]), [5, shape[1]]), tensor2d(source.slice(0, 5 * shape[0]), [5, shape[0]])];
    const tape = recordTape(() => weight.apply(x, call));
    const [dx] = tape.pull([x], [{ of: tape.value, value: dy }]) as [Tensor];
    const [y, back] = [matMul(x, w, false, true), matMul(dy, w)];
    expect(await distance(tape.value, y)).toBeLessThan(tolerance);
    expect(await distance(dx, back)).toBeLessThan(tolerance);
    const tile = weight.dense([3, 5]);
    const looked = tidy(() => weight.lookup!(tensor1d([23, 0], 'int32'), call)) as Tensor2D;
    const row = (r: number): number[] => [...widened.subarray(r * shape[1], (r + 1) * shape[1])];
    const near = (given: number[], expected: number[]): number => Math.max(...given.map((value, i) => Math.abs(value - expected[i]!)));
    expect(near(await f32(tile), [...row(3), ...row(4)])).toBeLessThan(tolerance);
    expect(near(await f32(looked), [...row(23), ...row(0)])).toBeLessThan(tolerance);
    for (const t of [w, x, dy, tape.value, dx, y, back, tile, looked]) t.dispose();
  }
});
