import { describe, expect, it } from 'vitest';
import { AbortError, ConfigError, inverseFactor, memory, NumericError, tensor1d, tensor2d, type Tensor2D } from '@niwaki/tensor';
import { initializeModel, tokenBatch, type Model, type TokenBatch } from '@niwaki/nn';
import { disposeBatch, type Method } from '@niwaki/engine';
import { weightBytes } from '@niwaki/weights';
import { awq, gptq, quantize, rtn } from '../src/index.ts';
import { searchScales } from '../src/awq.ts';
import { compensatedRounding } from '../src/compensated-rounding.ts';
import { logits } from '../../testing/src/contract-model.ts';
import { calibrationConfig as config, calibrationSequences, relativeDistance as distance } from '../../testing/src/calibration-model.ts';

const build = (): Promise<Model> => initializeModel(config, { seed: 1, trainable: false });
const sequences = calibrationSequences(4, 24);
const batchesOf = (): TokenBatch[] => sequences.map((row) => tokenBatch([row], { vocabularySize: 40 }));

const logitsOf = (model: Model): Promise<Float32Array> => logits(model, undefined, sequences);

/** Relative distance of the logits after quantizing, of a fresh model each. */
async function errorOf(method: Method): Promise<number> {
  const model = await build();
  const before = await logitsOf(model);
  const batches = batchesOf();
  await quantize(model, method, method.kind === 'rtn' ? {} : { calibrate: { batches } });
  const error = distance(await logitsOf(model), before);
  batches.forEach(disposeBatch);
  model.dispose();
  return error;
}

const noBreath = async (): Promise<void> => {};
const fixedSteps = (count: number): { scale: number; zero: number }[] => Array.from({ length: count }, () => ({ scale: 1, zero: 128 }));

describe('rounding that compensates', () => {
  const solve = async (h: number[][], w: number[]): Promise<{ values: number[]; loss: number }> => {
    const n = w.length;
    const u = await inverseFactor(Float64Array.from(h.flat()), n, noBreath);
    const { codes, loss } = await compensatedRounding(Float64Array.from(w), u, {
      shape: [1, n],
      bits: 8,
      groupSize: n,
      grid: 'absmax',
      steps: fixedSteps(1),
      breath: noBreath,
    });
    return { values: Array.from(codes, (code) => code - 128), loss };
  };

  it('factors the inverse of the second moments', async () => {
    const u = await inverseFactor(Float64Array.of(2, 1, 1, 2), 2, noBreath);
    for (const [i, value] of [0.816497, -0.408248, 0, 0.707107].entries()) expect(u[i]).toBeCloseTo(value, 6);
  });

  it.each([
    [
      [
        [2, 1],
        [1, 2],
      ],
      [0.6, 0.6],
      { values: [1, 0], loss: 0.28 },
      0.48,
    ],
    [
      [
        [4, 2, 0],
        [2, 3, 1],
        [0, 1, 2],
      ],
      [0.6, -1.3, 2.45],
      { values: [1, -2, 3], loss: 0.4125 },
      0.7625,
    ],
  ])('accepts less error than the nearest codes, worked by hand: H = %j, w = %j', async (h, w, expected, nearest) => {
    const lossOf = (q: readonly number[]): number => {
      const d = w.map((value, i) => value - q[i]!);
      return d.reduce((sum, di, i) => sum + d.reduce((row, dj, j) => row + (di * h[i]![j]! * dj) / 2, 0), 0);
    };
    const { values, loss } = await solve(h, w);
    expect(values).toEqual(expected.values);
    expect(loss).toBeCloseTo(expected.loss, 9);
    expect(lossOf(values)).toBeCloseTo(expected.loss, 9);
    expect(lossOf(w.map(Math.round))).toBeCloseTo(nearest, 9);
  });

  it('gives the same whether a block of columns holds all of them or not', async () => {
    const n = 160;
    const x = Array.from({ length: 400 }, (_, r) =>
      Array.from({ length: n }, (_, c) => Math.sin(r * 0.7 + c * c * 0.31) + 0.3 * Math.cos(r * c)),
    );
    const h = new Float64Array(n * n);
    for (let i = 0; i < n; i++)
      for (let j = 0; j < n; j++) h[i * n + j] = x.reduce((sum, row) => sum + row[i]! * row[j]!, 0) / 400 + (i === j ? 0.02 : 0);
    const w = Float64Array.from({ length: 2 * n }, (_, i) => Math.sin(i * 1.3));
    const u = await inverseFactor(h.slice(), n, noBreath);
    const options = { shape: [2, n] as const, bits: 3 as const, grid: 'asymmetric' as const, breath: noBreath };
    const { codes, steps, loss } = await compensatedRounding(w.slice(), u, { ...options, groupSize: 32 });
    // What was accepted is what the codes say it is: the identity holds across blocks and groups.
    let expected = 0;
    for (let row = 0; row < 2; row++) {
      const d = Array.from({ length: n }, (_, i) => {
        const { scale, zero } = steps[row * 5 + Math.floor(i / 32)]!;
        return w[row * n + i]! - scale * (codes[row * n + i]! - zero);
      });
      for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) expected += (d[i]! * h[i * n + j]! * d[j]!) / 2;
    }
    expect(Math.abs(loss / expected - 1)).toBeLessThan(1e-6);
  });

  it('refuses moments that are not positive definite', async () => {
    await expect(inverseFactor(Float64Array.of(1, 2, 2, 1), 2, noBreath)).rejects.toThrow(NumericError);
  });
});

describe('the search for scales', () => {
  it('finds the ratio of the worked example', async () => {
    const x = tensor2d([
      [8, 0.5, -1, 0.25],
      [-6, 1, 0.5, -0.5],
      [10, -0.5, 1, 1],
    ]);
    const w = tensor2d([
      [0.31, -0.9, 0.44, 0.75],
      [-0.62, 0.15, 0.8, -0.27],
    ]);
    const rows = (await x.array()) as number[][];
    const gram = tensor2d([0, 1, 2, 3].map((i) => [0, 1, 2, 3].map((j) => rows.reduce((sum, row) => sum + row[i]! * row[j]!, 0) / 3)));
    const absMean = tensor1d([8, 2 / 3, 2.5 / 3, 1.75 / 3]);
    const { ratio, losses, scales } = await searchScales([w as Tensor2D], { gram, absMean, bits: 2, groupSize: 4 });
    expect(losses[0]).toBeCloseTo(2.419446, 4);
    expect(ratio).toBe(0.3);
    expect(losses[6]).toBeCloseTo(0.187865, 4);
    for (const [i, value] of [1.481071, 0.702784, 0.751441, 0.675187].entries()) expect(scales[i]).toBeCloseTo(value, 5);
    for (const t of [x, w, gram, absMean]) t.dispose();
  });
});

describe('integer methods', () => {
  it('take the memory they say', async () => {
    const model = await build();
    const path = 'model.layers.0.mlp.up_proj';
    const bytes: number[] = [];
    for (const method of [rtn({ bits: 3, groupSize: 32, symmetric: true }), rtn({ bits: 8, groupSize: 'row' })]) {
      await quantize(model, method, { at: path, requantize: true });
      bytes.push(weightBytes(model.sites(path)[0]!.weight!));
    }
    // Codes, scales, and a byte a zero.
    expect(bytes).toEqual([(64 * 32 * 3) / 8 + 64 * 4, 64 * 32 + 64 * 4 + 64]);
    model.dispose();
  });

  it('lose less of the outputs where they look at the data', async () => {
    const options = { bits: 4, groupSize: 32 } as const;
    const nearest = await errorOf(rtn(options));
    const compensated = await errorOf(gptq(options));
    const ordered = await errorOf(gptq({ ...options, actOrder: true }));
    const aware = await errorOf(awq(options));
    expect(nearest).toBeGreaterThan(0.01);
    expect(compensated).toBeLessThan(0.9 * nearest);
    expect(ordered).toBeLessThan(0.9 * nearest);
    expect(aware).toBeLessThan(nearest);
  });

  it.each([
    ['rtn', rtn],
    ['gptq', gptq],
  ] as const)('of 2 bits lose less where the range of a group may shrink (%s)', async (_, method) => {
    const options = { bits: 2, groupSize: 32 } as const;
    expect(await errorOf(method({ ...options, mse: true }))).toBeLessThan(await errorOf(method(options)));
  });

  it.each([
    ['gptq', gptq({ bits: 8, groupSize: 16, actOrder: true })],
    ['awq', awq({ bits: 8, groupSize: 16 })],
  ] as const)('keep columns where they belong (%s)', async (_, method) => {
    const model = await build();
    const path = 'model.layers.1.mlp.down_proj';
    const values = async (): Promise<Float32Array> => {
      const dense = model.sites(path)[0]!.weight!.dense();
      const host = (await dense.data()) as Float32Array;
      dense.dispose();
      return host;
    };
    const before = await values();
    const batches = batchesOf();
    await quantize(model, method, { at: path, calibrate: { batches } });
    expect(Object.keys(model.sites(path)[0]!.weight!.parts).at(-1)).toBe(method.kind === 'gptq' ? 'order' : 'input_scales');
    expect(distance(await values(), before)).toBeLessThan(0.02);
    batches.forEach(disposeBatch);
    model.dispose();
  });

  it('keep the steps of the matrix, and its columns in place, where the groups are static', async () => {
    const path = 'model.layers.1.mlp.down_proj';
    const parts = async (method: Method): Promise<Map<string, number[]>> => {
      const model = await build();
      const batches = batchesOf();
      await quantize(model, method, { at: path, ...(method.kind === 'gptq' && { calibrate: { batches } }) });
      const found = new Map<string, number[]>();
      for (const [name, part] of Object.entries(model.sites(path)[0]!.weight!.parts)) found.set(name, [...(await part.read().data())]);
      batches.forEach(disposeBatch);
      model.dispose();
      return found;
    };
    for (const groupSize of [16, 'row'] as const) {
      const options = { bits: 3, groupSize } as const;
      const nearest = await parts(rtn(options));
      const ordered = await parts(gptq({ ...options, actOrder: true, staticGroups: true }));
      expect([...ordered.keys()]).toEqual(['qweight', 'scales', 'zeros']);
      expect(ordered.get('scales')).toEqual(nearest.get('scales'));
      expect(ordered.get('zeros')).toEqual(nearest.get('zeros'));
      expect(ordered.get('qweight')).not.toEqual(nearest.get('qweight'));
    }
    const fixed = await errorOf(gptq({ bits: 4, groupSize: 32, actOrder: true, staticGroups: true }));
    expect(fixed).toBeLessThan(0.9 * (await errorOf(rtn({ bits: 4, groupSize: 32 }))));
  });

  it('of a column without input are 0, and count for the step of a whole row alone', async () => {
    const path = 'model.layers.1.mlp.down_proj';
    const found = new Map<string, { scales: number[]; column: number[] }>();
    for (const [name, method] of Object.entries({
      row: gptq({ bits: 3, groupSize: 'row' }),
      'nearest, row': rtn({ bits: 3, groupSize: 'row' }),
      groups: gptq({ bits: 3, groupSize: 16 }),
      'nearest, groups': rtn({ bits: 3, groupSize: 16 }),
    })) {
      const model = await build();
      // Nothing comes through column 5, which holds the largest entry of every row.
      const [up, down] = ['model.layers.1.mlp.up_proj', path].map((at) => model.sites(at)[0]!.weight!.matrix!);
      const changed = async (matrix: typeof up, value: (entry: number, i: number) => number): Promise<Float32Array> =>
        Float32Array.from(await matrix!.read().data(), value);
      up!.write(tensor2d(await changed(up, (entry, i) => (Math.floor(i / 32) === 5 ? 0 : entry)), [64, 32]));
      down!.write(tensor2d(await changed(down, (entry, i) => (i % 64 === 5 ? 3 : entry)), [32, 64]));
      const batches = batchesOf();
      await quantize(model, method, { at: path, ...(method.kind === 'gptq' && { calibrate: { batches } }) });
      const { weight } = model.sites(path)[0]!;
      const dense = weight!.dense();
      const column = [...(await dense.data())].filter((_, i) => i % 64 === 5);
      dense.dispose();
      found.set(name, { scales: [...(await weight!.parts['scales']!.read().data())], column });
      batches.forEach(disposeBatch);
      model.dispose();
    }
    expect(found.get('row')!.scales).toEqual(found.get('nearest, row')!.scales);
    // The first group of each row holds the column, and its step is that of the others.
    const [own, nearest] = [found.get('groups')!.scales, found.get('nearest, groups')!.scales];
    const ratios = own.map((scale, g) => scale / nearest[g]!).filter((_, g) => g % 4 === 0);
    expect(Math.max(...ratios)).toBeLessThan(0.6);
    for (const name of ['row', 'groups']) expect(found.get(name)!.column.every((value) => value === 0)).toBe(true);
    expect(found.get('nearest, row')!.column.every((value) => value > 2)).toBe(true);
  });

  it('in few bits lose less where the largest values of a group may be cut', async () => {
    const options = { bits: 3, groupSize: 32 } as const;
    expect(await errorOf(awq(options))).toBeLessThan(await errorOf(awq({ ...options, clip: false })));
  });

  it.each([
    ['gptq', gptq({ bits: 2, groupSize: 16, actOrder: true })],
    ['gptq at once', gptq({ bits: 4, groupSize: 'row', symmetric: 'gptq', sequential: false })],
    ['awq', awq({ bits: 4, groupSize: 8 })],
    ['awq without cuts', awq({ bits: 8, groupSize: 'row', clip: false })],
  ] as const)('replace every linear map and leave no other tensor (%s)', async (_, method) => {
    const start = memory().numTensors;
    const model = await build();
    const batches = batchesOf();
    const { sites, bytes } = await quantize(model, method, { calibrate: { batches } });
    expect(sites).toHaveLength(14);
    expect(bytes).toBe(model.sites([...sites]).reduce((sum, { weight }) => sum + weightBytes(weight!), 0));
    expect(model.sites('all-linear').every(({ weight }) => weight!.kind === 'affine')).toBe(true);
    expect((await logitsOf(model)).every(Number.isFinite)).toBe(true);
    batches.forEach(disposeBatch);
    model.dispose();
    expect(memory().numTensors).toBe(start);
  });

  it.each([
    ['gptq', gptq({ groupSize: 32 })],
    ['awq', awq({ groupSize: 32 })],
    ['rtn', rtn({ groupSize: 32 })],
  ] as const)('name the matrix that is not finite and leave the model as it was (%s)', async (kind, method) => {
    const model = await build();
    const parameter = model.sites('layers.1.mlp.up_proj')[0]!.weight!.matrix!;
    const values = (await parameter.read().data()).slice();
    values[5] = Infinity;
    parameter.write(tensor2d(values as Float32Array, [64, 32]));
    const batches = batchesOf();
    const before = memory().numTensors;
    const work = quantize(model, method, kind === 'rtn' ? {} : { calibrate: { batches } });
    await expect(work).rejects.toThrow(NumericError);
    await expect(work).rejects.toThrow("'model.layers.1.mlp.up_proj.weight' holds Infinity at [0,5]");
    expect(model.sites('all-linear').every(({ weight }) => weight!.kind === 'dense')).toBe(true);
    expect(memory().numTensors).toBe(before);
    batches.forEach(disposeBatch);
    model.dispose();
  });

  it('stop when they are told to, and take back what they did', async () => {
    const model = await build();
    const batches = batchesOf();
    const stop = new AbortController();
    const work = quantize(model, gptq({ groupSize: 32 }), {
      calibrate: { batches, onBlock: () => stop.abort() },
      signal: stop.signal,
    });
    await expect(work).rejects.toThrow(AbortError);
    expect(model.sites('all-linear').every(({ weight }) => weight!.kind === 'dense')).toBe(true);
    batches.forEach(disposeBatch);
    model.dispose();
  });

  it('refuse what lies outside their options, with the field, the value and the range', async () => {
    expect(() => rtn({ bits: 5 as never })).toThrow(/bits must be one of 2, 3, 4, 8, got 5/);
    expect(() => rtn({ groupSize: 0 })).toThrow(/groupSize must be a whole number from 1, or 'row', got 0/);
    expect(() => rtn({ symmetric: 'yes' as never })).toThrow(/symmetric must be true, false, 'gptq' or 'torchao', got "yes"/);
    expect(() => rtn({ mse: 1 as never })).toThrow(/mse must be true or false, got 1/);
    expect(() => gptq({ damping: 0 })).toThrow(/damping must be between 0 and 1, got 0/);
    expect(() => gptq({ damping: NaN })).toThrow(ConfigError);
    expect(() => awq({ clip: 1 as never })).toThrow(/clip must be true or false, got 1/);
    const model = await build();
    const batches = batchesOf();
    await expect(quantize(model, rtn({ groupSize: 64 }))).rejects.toThrow(/rows of 32.*got 64/);
    await expect(quantize(model, gptq({ groupSize: 32 }))).rejects.toThrow(/needs calibration batches/);
    await expect(quantize(model, awq({ groupSize: 32 }), { at: 'embed_tokens', calibrate: { batches } })).rejects.toThrow(
      /does not give \(inputs\)/,
    );
    batches.forEach(disposeBatch);
    model.dispose();
  });

  it('are their own recipes', () => {
    expect(JSON.stringify(rtn({ bits: 8, groupSize: 'row', symmetric: true }))).toBe(
      '{"kind":"rtn","options":{"bits":8,"groupSize":"row","symmetric":true,"mse":false}}',
    );
    expect(JSON.stringify(gptq({ bits: 3 }))).toBe(
      '{"kind":"gptq","options":{"bits":3,"groupSize":64,"symmetric":false,"mse":false,"damping":0.01,"actOrder":false,"staticGroups":false,"sequential":true}}',
    );
    expect(JSON.stringify(awq())).toBe('{"kind":"awq","options":{"bits":4,"groupSize":64,"clip":true,"fold":false}}');
  });
});
