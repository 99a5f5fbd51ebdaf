import { describe, expect, it } from 'vitest';
import { applyMethod, disposeBatch, isCalibrated } from '@niwaki/engine';
import { tokenBatch, type Model, type Site } from '@niwaki/nn';
import { ConfigError, memory, tensor2d, tidy } from '@niwaki/tensor';
import {
  createCall,
  disposeWeight,
  encodeAffine,
  encodeGgufBlocks,
  ggufBlock,
  inputFrom,
  lowRank,
  masked,
  onScaledChannels,
  packMask,
  recordOfInput,
  recordOfWeight,
  rowsOf,
  tensorQuantizer,
  tokenQuantizer,
  trainedAffine,
  weightFrom,
  type ActivationQuantizer,
  type GgufEncoded,
  type Weight,
} from '@niwaki/weights';
import { bytesOf } from '../../testing/src/contract-model.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { weightMethods } from '../../lowrank/test/contract-list.ts';
import { quantizers } from '../../quant/test/contract-list.ts';
import { pruners } from '../../sparse/test/contract-list.ts';

const path = 'model.layers.0.mlp.down_proj';

/** A weight of a model of [32, 64] matrices, and the one made of its record: the same to the last bit. */
async function expectSame(change: (model: Model, site: Site) => Promise<void>): Promise<void> {
  const tensors = memory().numTensors;
  const model = await tinyLlama({ hidden_size: 32, intermediate_size: 64, head_dim: 8 });
  const site = model.sites(path)[0]!;
  await change(model, site);
  const weight = site.weight!;
  const record = structuredClone(await recordOfWeight(weight));
  const again = weightFrom(path, record);
  const outputs = async ({ apply, dense }: Weight): Promise<(Float32Array | Int32Array | Uint8Array)[]> => {
    const x = tensor2d(
      Float32Array.from({ length: 3 * 64 }, (_, i) => Math.sin(i)),
      [3, 64],
    );
    const made = tidy(() => [apply.call(weight, x, createCall({ batch: {} })), dense()]);
    x.dispose();
    const values = await Promise.all(made.map((tensor) => tensor.data()));
    made.forEach((tensor) => tensor.dispose());
    return values;
  };
  expect([again.kind, again.options, again.shape]).toEqual([weight.kind, weight.options, weight.shape]);
  expect(Object.keys(again.parts)).toEqual(Object.keys(weight.parts));
  const [given, made] = [await bytesOf(Object.values(weight.parts)), await bytesOf(Object.values(again.parts))];
  expect([...given.keys()].filter((name) => given.get(name) !== made.get(name))).toEqual([]);
  const told = ({ parts }: Weight): unknown[] => Object.values(parts).map((part) => [part.path, part.shape, part.role, part.trainable]);
  expect(told(again)).toEqual(told(weight));
  expect(await outputs(again)).toEqual(await outputs(weight));
  // Kept once more it is the same record.
  expect(await recordOfWeight(again)).toEqual(record);
  disposeWeight(again);
  model.dispose();
  expect(memory().numTensors).toBe(tensors);
}

describe('a weight made of its record', () => {
  it.each(Object.entries({ ...quantizers, ...weightMethods, ...pruners }))('is what was stored: %s', async (_, { make }) => {
    await expectSame(async (model) => {
      const method = make();
      const batches = isCalibrated(method) ? [tokenBatch([[1, 2, 3, 4, 5, 6, 7, 8]], { vocabularySize: 32 })] : [];
      const at = method.kind === 'dsnot' || method.kind === 'cbq' ? 'all-linear' : path;
      await applyMethod(model, method, { at, ...(batches.length > 0 && { calibrate: { batches } }) });
      batches.forEach(disposeBatch);
    });
  });

  it.each<GgufEncoded>(['Q4_0', 'Q8_0', 'F16', 'BF16'])('is what a file had: %s', (format) =>
    expectSame(async (model, { weight }) => {
      model.replace(path, ggufBlock(path, weight!.shape, format, await encodeGgufBlocks(path, weight!.shape, rowsOf(weight!), format)));
    }),
  );

  it('is a matrix in floats, trained or not, and one whose codes train', async () => {
    await expectSame(async () => {});
    await expectSame(async (_, { weight }) => void (weight!.matrix!.trainable = true));
    const codes = async (model: Model, { weight }: Site): Promise<void> => {
      const [out, width] = weight!.shape;
      const parts = await encodeAffine(path, [out, width], rowsOf(weight!), { bits: 8, groupSize: 16, grid: 'asymmetric' });
      model.replace(path, trainedAffine(path, [out, width], parts, { groupSize: 16 }));
    };
    await expectSame(codes);
    await expectSame(async (model, site) => {
      await codes(model, site);
      const [out, width] = site.weight!.shape;
      const kept = Uint8Array.from({ length: out * width }, (_, i) => (i % 3 === 0 ? 0 : 1));
      const weight = masked(path, site.weight!, packMask(kept));
      site.weight = weight;
    });
  });

  it('is refused for what has no form as data, before anything is read back', async () => {
    const model = await tinyLlama();
    const { a, b } = { a: model.sites(path)[0]!.weight!.matrix!, b: model.sites('model.layers.0.mlp.up_proj')[0]!.weight!.matrix! };
    const refused: Promise<unknown> = recordOfWeight(lowRank({ a: b, b: a, scale: 1 }));
    await expect(refused).rejects.toThrow(ConfigError);
    await expect(refused).rejects.toThrow(/'low-rank' have no form as data/);
    model.dispose();
  });
});

describe('what rounds an input, made of its record', () => {
  const quantizersOf: Readonly<Record<string, () => ActivationQuantizer>> = {
    'per token': () => tokenQuantizer({ bits: 8, symmetric: true }),
    'per token, beside outliers': () => tokenQuantizer({ bits: 8, symmetric: true, outlierThreshold: 0.9 }),
    'per tensor': () => tensorQuantizer(path, { scale: 0.013, zero: 7 }, { bits: 4, symmetric: false }),
    'per tensor, symmetric, on scaled channels': () =>
      onScaledChannels(path, tensorQuantizer(path, { scale: 0.1 }, { bits: 6, symmetric: true }), Float32Array.from([1, 0.3, 2, 0.7])),
  };
  it.each(Object.entries(quantizersOf))('is what it was: %s', async (_, make) => {
    const tensors = memory().numTensors;
    const one = make();
    const again = inputFrom(path, structuredClone(await recordOfInput(one)));
    const formOf = (q: ActivationQuantizer): unknown[] => [q.per, q.bits, q.symmetric, q.outlierThreshold, 'step' in q];
    expect(formOf(again)).toEqual(formOf(one));
    expect(await bytesOf(Object.values(again.parts))).toEqual(await bytesOf(Object.values(one.parts)));
    const rounded = async ({ apply }: ActivationQuantizer): Promise<Float32Array | Int32Array | Uint8Array> => {
      const x = tensor2d([[0.11, -0.52, 0.97, 0.003]]);
      const y = tidy(() => apply(x, createCall({ batch: {} })));
      const values = await y.data();
      x.dispose();
      y.dispose();
      return values;
    };
    expect(await rounded(again)).toEqual(await rounded(one));
    for (const { parts } of [one, again]) for (const part of Object.values(parts)) part.dispose();
    expect(memory().numTensors).toBe(tensors);
  });
});
