import { beforeAll, describe, expect, it } from 'vitest';
import { init } from '../../backend/src/index.ts';
import {
  bytesOf,
  createDraw,
  dequantizeBlocks,
  keep,
  memory,
  noise,
  quantizeBlocks,
  scalar,
  tensor1d,
  tidy,
  zeros,
  denseParameter,
  type Tensor,
} from '@niwaki/tensor';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { adamw, type State } from '../src/index.ts';

const missing = await gpuMissing();
const wave = (length: number): number[] => Array.from({ length }, (_, i) => Math.sin(i * 1.3) * 10 ** -(i % 9));

async function coded(signed: boolean, length: number): Promise<{ codes: number[]; scales: number[]; values: number[] }> {
  const x = tensor1d(wave(length).map((value) => (signed ? value : value * value)));
  const given = quantizeBlocks(x, { signed });
  const back = dequantizeBlocks(given, { shape: [length], signed });
  const found = {
    codes: [...bytesOf(await given.words.data(), length)],
    scales: [...(await given.scales.data())],
    values: [...(await back.data())],
  };
  for (const each of [x, back, given.words, given.scales]) each.dispose();
  return found;
}

/** Two steps of AdamW in 8 bits on 4,100 entries. */
async function trained(): Promise<Float32Array> {
  const before = memory().numTensors;
  const optimizer = adamw({ learningRate: 1, weightDecay: 0, state: '8bit' });
  const parameter = denseParameter('p', zeros([4100]), { role: 'matrix', trainable: true });
  let state = tidy(() => optimizer.init(parameter) as Record<string, Tensor>) as State;
  for (let attempt = 0; attempt < 2; attempt++) {
    const old = state;
    state = tidy(() => {
      const value = noise([4100], createDraw(1, attempt).at('g'), 'gaussian');
      const updates = scalar(attempt + 1);
      const context = { parameter, attempt, updates, rate: 0.01, progress: 0, draw: createDraw(1, attempt) };
      const made = optimizer.update({ kind: 'dense', value }, old, context);
      parameter.commit(made.update, scalar(1), made.how);
      for (const each of Object.values(made.state)) keep(each as Tensor);
      return made.state as Record<string, Tensor>;
    });
    for (const each of Object.values(old)) (each as Tensor).dispose();
  }
  const values = (await parameter.read().data()) as Float32Array;
  for (const each of Object.values(state)) (each as Tensor).dispose();
  parameter.dispose();
  expect(memory().numTensors).toBe(before);
  return values;
}

describe.skipIf(missing)('8-bit state on WebGPU', () => {
  beforeAll(async () => {
    await init({ device: 'webgpu', software: true });
  });

  it.each([true, false])('has the codes of the cpu device, but for ties, signed %s', async (signed) => {
    const given = await coded(signed, 1001);
    await init({ device: 'cpu' });
    const expected = await coded(signed, 1001);
    await init({ device: 'webgpu', software: true });
    expect(given.scales).toEqual(expected.scales);
    const apart = given.codes.map((code, i) => Math.abs(code - expected.codes[i]!));
    expect(Math.max(...apart)).toBeLessThanOrEqual(1);
    expect(apart.filter((distance) => distance > 0).length).toBeLessThan(3);
    expect(given.values.filter((value, i) => apart[i] === 0 && value !== expected.values[i])).toEqual([]);
  });

  it('moves parameters as on the cpu device', async () => {
    const given = await trained();
    await init({ device: 'cpu' });
    const expected = await trained();
    await init({ device: 'webgpu', software: true });
    given.forEach((value, i) => expect(Math.abs(value - expected[i]!)).toBeLessThan(1e-3));
  });
});
