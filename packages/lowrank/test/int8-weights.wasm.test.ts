import { describe, expect, it } from 'vitest';
import {
  createDraw,
  dispose,
  gradientsOf,
  matMul,
  memory,
  openMemoryLedger,
  scalar,
  standIn,
  tensor2d,
  tidy,
  type Gradient,
  type Parameter,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import type { Transform } from '@niwaki/optim';
import {
  createCall,
  disposeWeight,
  encodeAffine,
  masked,
  packMask,
  rowsOfTensor,
  trainedAffine,
  weightBytes,
  type Weight,
} from '@niwaki/weights';
import { applyMethod, causalLM, createStep, disposeBatch, languageBatch } from '@niwaki/engine';
import { bytesOf, cloned } from '../../testing/src/contract-model.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { galore, int8Weights, qGalore } from '../src/index.ts';
import { lossesOf, onModel } from './on-model.ts';
import { gap, wave, zeros } from './arrays.ts';

async function int8(path: string, values: readonly number[], shape: [number, number], groupSize = 8): Promise<Weight> {
  const dense = tensor2d([...values], shape);
  const parts = await encodeAffine(`${path}.weight`, shape, rowsOfTensor(dense), { bits: 8, groupSize, grid: 'asymmetric' });
  dense.dispose();
  return trainedAffine(path, shape, parts, { groupSize });
}

const optimizer = (): Transform =>
  qGalore({ learningRate: 1, rank: 4, every: 3, window: 2, basisGroupSize: 32, state: { minSize: 64, blockSize: 64 } });
const valueOf = (gradient: Gradient): Tensor => (gradient as { readonly value: Tensor }).value;
const isInt8 = ({ stored }: Parameter): boolean => stored !== undefined;

describe('weights of bytes that train', () => {
  it('multiply, and give gradients, as the floats they stand for', async () => {
    const before = memory().numTensors;
    const weight = await int8('m', wave(15 * 24, 2), [15, 24]);
    const matrix = weight.matrix!;
    const dense = weight.dense();
    const [x, dy] = [tensor2d(wave(6 * 24, 3), [6, 24]), tensor2d(wave(6 * 15, 4), [6, 15])];
    const watched = standIn(matrix.shape, weight.parts['qweight']!.read());
    const call = createCall({ batch: {}, watched: new Map([[matrix, watched]]), training: true });
    const { value, gradients } = gradientsOf(
      () => weight.apply(x, call),
      [x, watched],
      (y) => [{ of: y, value: dy }],
    );
    const expected = tidy(() => [matMul(x, dense, false, true), matMul(dy, dense), matMul(dy, x, true, false)]);
    [value, ...gradients].forEach((tensor, i) => expect(gap(tensor!.dataSync(), expected[i]!.dataSync())).toBeLessThan(1e-5));
    // Read by whoever does not know of the stand-in: the values, and the gradient of the values.
    const other = gradientsOf(
      () => matMul(x, call.value(matrix) as Tensor2D, false, true),
      [watched],
      (y) => [{ of: y, value: dy }],
    );
    expect(gap(other.value.dataSync(), expected[0]!.dataSync())).toBeLessThan(1e-5);
    expect(gap(other.gradients[0]!.dataSync(), expected[2]!.dataSync())).toBeLessThan(1e-5);
    dispose([dense, x, dy, watched, value, ...gradients, ...expected, other.value, ...other.gradients] as Tensor[]);
    disposeWeight(weight);
    expect(memory().numTensors).toBe(before);
  });

  it('are one parameter, without bytes of its own, over codes, scales and zeros', async () => {
    const weight = await int8('m', wave(16 * 256, 2), [16, 256], 256);
    const matrix = weight.matrix!;
    expect([matrix.path, matrix.role, matrix.bytes()]).toEqual(['m.weight', 'matrix', 0]);
    expect(matrix.stored!.map(({ path }) => path)).toEqual(['m.qweight', 'm.scales', 'm.zeros']);
    // The formula with a byte for a zero instead of a float.
    expect(weightBytes(weight)).toBe(16 * 256 + 4 * 16 + 16);
    expect(weightBytes(weight)).toBeLessThan(16 * 256 + 2 * 4 * 16);
    const version = matrix.version;
    const value = tensor2d(wave(16 * 256, 5), [16, 256]);
    matrix.write(value);
    expect(matrix.version).toBe(version + 1);
    const read = matrix.read();
    const scales = weight.parts['scales']!.read().dataSync();
    expect(gap(read.dataSync(), wave(16 * 256, 5))).toBeLessThan(0.51 * Math.max(...scales));
    read.dispose();
    expect(() => matrix.write(tidy(() => tensor2d([1, 2], [1, 2])))).toThrow(/\[16,256\]/);
    disposeWeight(weight);
  });

  it('commit decay, update and rounding, or nothing where the step is refused', async () => {
    const weight = await int8('m', wave(64, 2), [4, 16], 16);
    const matrix = weight.matrix!;
    const address = createDraw(1, 5).at('m.weight#rounding');
    const commit = (ok: number, decay?: number): void =>
      tidy(() => {
        const update = tensor2d(wave(64, 7), [4, 16]);
        matrix.commit({ kind: 'dense', value: update }, scalar(ok), { noise: address, ...(decay && { decay }) });
      }) as never;
    const before = await bytesOf(Object.values(weight.parts));
    const start = tidy(() => [...matrix.read().dataSync()] as never) as unknown as number[];
    commit(0);
    expect(await bytesOf(Object.values(weight.parts))).toEqual(before);
    commit(1, 0.5);
    const after = tidy(() => [...matrix.read().dataSync()] as never) as unknown as number[];
    const steps = weight.parts['scales']!.read().dataSync();
    const expected = start.map((value, i) => 0.5 * value + wave(64, 7)[i]!);
    after.forEach((value, i) => expect(Math.abs(value - expected[i]!)).toBeLessThan(1.001 * steps[Math.floor(i / 16)]!));
    expect(() => tidy(() => matrix.commit({ kind: 'dense', value: tensor2d(zeros(64), [4, 16]) }, scalar(1)) as never)).toThrow(/address/);
    disposeWeight(weight);
  });

  it('add up the gradients of micro-batches', async () => {
    const rows = [{ ids: [3, 1, 4, 1, 5, 9] }, { ids: [2, 7, 1, 8, 2, 8] }];
    const gradientsOver = async (windows: readonly (typeof rows)[]): Promise<ReadonlyMap<string, number[]>> => {
      const seen = new Map<string, number[]>();
      const spy: Transform = {
        name: 'spy',
        init: () => ({}),
        update: (gradient, state, { parameter }) => {
          seen.set(parameter.path, [...valueOf(gradient).dataSync()]);
          return { update: gradient, state };
        },
      };
      const { model, end } = await onModel(spy, { rounding: 'stochastic' });
      const wrt = [...model.parameters().values()].filter(isInt8);
      const step = createStep({ model, objective: causalLM(), optimizer: spy, wrt });
      const batches = windows.map((window) => languageBatch(window, { vocabularySize: 32 }));
      await step.run({ batches, attempt: 0, rate: 1, progress: 0, draw: createDraw(1, 0) });
      batches.forEach(disposeBatch);
      step.dispose();
      end();
      return seen;
    };
    const [whole, parts] = [await gradientsOver([rows]), await gradientsOver(rows.map((row) => [row]))];
    expect(whole.size).toBe(14);
    for (const [path, values] of whole) expect(gap(parts.get(path)!, values)).toBeLessThan(1e-5);
  });

  it('learn by chance what they lose to the nearest', async () => {
    const setting = { steps: 12, rate: 5e-4 };
    const optimizer = (): Transform => galore({ learningRate: 1, rank: 8, every: 10, scale: 1 });
    const float = await lossesOf(optimizer(), setting);
    const chance = await lossesOf(optimizer(), { ...setting, rounding: 'stochastic' });
    const nearest = await lossesOf(optimizer(), { ...setting, rounding: 'nearest' });
    expect(float.at(-1)!).toBeLessThan(float[0]! - 0.1);
    expect(Math.abs(chance.at(-1)! / float.at(-1)! - 1)).toBeLessThan(0.01);
    expect(nearest[0]! - nearest.at(-1)!).toBeLessThan(0.5 * (float[0]! - float.at(-1)!));
  });

  it('give the same bits twice, committed stage by stage too, and go on from a saved state', async () => {
    const before = memory().numTensors;
    const found: Map<string, string>[] = [];
    for (const commit of ['step', 'step', 'eager'] as const) {
      const { model, advance, end } = await onModel(optimizer(), { commit, rounding: 'stochastic' });
      await advance(5);
      found.push(await bytesOf(model.parameters().values()));
      end();
    }
    expect(found[1]).toEqual(found[0]);
    expect(found[2]).toEqual(found[0]);

    const { model, step, advance, end } = await onModel(optimizer(), { rounding: 'stochastic' });
    await advance(3);
    const next = createStep({ model, objective: causalLM(), optimizer: optimizer() });
    next.restore(new Map([...step.state()].map(([path, state]) => [path, cloned(state)])), step.updates());
    await advance(2, next);
    expect(await bytesOf(model.parameters().values())).toEqual(found[0]);
    next.dispose();
    end();
    const other = await onModel(optimizer(), { rounding: 'stochastic', seed: 2 });
    await other.advance(5);
    expect(await bytesOf(other.model.parameters().values())).not.toEqual(found[0]);
    other.end();
    expect(memory().numTensors).toBe(before);
  });

  it('are the only copy: between steps nothing but what is stored is there, in a step no float copy of what trains', async () => {
    const config = { hidden_size: 64, head_dim: 16, intermediate_size: 256, num_hidden_layers: 4, num_key_value_heads: 4 };
    const peakOf = async (rounding?: 'stochastic'): Promise<{ whole: number; above: number }> => {
      const ledger = openMemoryLedger();
      const start = ledger.bytes();
      const made = qGalore({ learningRate: 1, rank: 8, every: 100, state: { minSize: 64 } });
      const { model, step, advance, end } = await onModel(made, { commit: 'eager', config, ...(rounding && { rounding }) });
      await advance(1);
      const held = [...model.parameters().values()].reduce((sum, parameter) => sum + parameter.bytes(), 0) + step.stateBytes();
      // Beside them: the batch, and tables of positions.
      expect(ledger.bytes() - start - held).toBeLessThan(20_000);
      const rest = ledger.bytes();
      ledger.resetPeak();
      await advance(1);
      expect(ledger.bytes()).toBe(rest);
      const peak = { whole: ledger.peak() - start, above: ledger.peak() - rest };
      end();
      ledger.dispose();
      return peak;
    };
    const [floats, codes] = [await peakOf(), await peakOf('stochastic')];
    const entries = 4 * (4 * 64 * 64 + 3 * 64 * 256);
    // The three bytes an entry that are saved between steps, less the groups' scales and zeros, are saved in them too.
    expect(floats.whole - codes.whole).toBeGreaterThan(2.8 * entries);
    // Of four blocks' matrices in floats: a gradient of one and what its update is made of.
    expect(codes.above).toBeLessThan(0.45 * 4 * entries);
  });

  it('keep the zeros of a mask, whatever is committed and written', async () => {
    const before = memory().numTensors;
    const kept = Uint8Array.from({ length: 64 }, (_, i) => (i % 3 === 0 ? 0 : 1));
    const weight = masked('m', await int8('m', wave(64, 2), [4, 16]), packMask(kept));
    const matrix = weight.matrix!;
    const zerosOf = (): number[] => {
      const dense = weight.dense();
      const found = [...dense.dataSync()].flatMap((value, i) => (value === 0 ? [i] : []));
      dense.dispose();
      return found;
    };
    const pruned = [...kept.keys()].filter((i) => kept[i] === 0);
    expect(zerosOf()).toEqual(pruned);
    for (let i = 0; i < 20; i++) {
      tidy(() => {
        const update = tensor2d(wave(64, i), [4, 16]);
        matrix.commit({ kind: 'dense', value: update }, scalar(1), { noise: createDraw(1, i).at('m'), decay: 0.1 });
      });
      expect(zerosOf().filter((e) => kept[e] === 0)).toEqual(pruned);
    }
    matrix.write(tensor2d(wave(64, 9), [4, 16]));
    expect(zerosOf()).toEqual(pruned);
    // Both masks keep less than either, over the same codes.
    const twice = masked('m', weight, packMask(Uint8Array.from(kept, (_, i) => i % 2)));
    const dense = twice.dense();
    [...dense.dataSync()].forEach((value, i) => expect(value === 0).toBe(kept[i] === 0 || i % 2 === 0));
    dense.dispose();
    expect(twice.matrix!.stored).toHaveLength(3);
    disposeWeight(twice);
    expect(memory().numTensors).toBe(before);
  });

  it('refuse what has no place for them', async () => {
    const model = await tinyLlama();
    await expect(applyMethod(model, int8Weights(), { at: '**.embed_tokens' })).rejects.toThrow(/looks rows up/);
    model.dispose();
    const tied = await tinyLlama({ tie_word_embeddings: true });
    await expect(applyMethod(tied, int8Weights(), { at: 'lm_head' })).rejects.toThrow(/tied to/);
    tied.dispose();
    const odd = await tinyLlama({ intermediate_size: 36 });
    await expect(applyMethod(odd, int8Weights(), { at: 'all-linear' })).rejects.toThrow(/rows of 36/);
    odd.dispose();
    expect(() => int8Weights({ groupSize: 4 })).toThrow(/groupSize/);
    expect(() => int8Weights({ rounding: 'up' as never })).toThrow(/rounding/);
    expect(JSON.stringify(int8Weights({ groupSize: 64 }))).toBe(
      '{"kind":"int8-weights","options":{"groupSize":64,"rounding":"stochastic"}}',
    );
  });
});
