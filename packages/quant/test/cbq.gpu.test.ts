import { describe, expect, it } from 'vitest';
import { init } from '../../backend/src/index.ts';
import { createDraw, denseParameter, gradientsOf, memory, mul, noise, onesLike, tidy, type Tensor, type Tensor2D } from '@niwaki/tensor';
import { affineStep, createCall, denseWeight, disposeWeight, fakeQuant } from '@niwaki/weights';
import { initializeModel, tokenBatch } from '@niwaki/nn';
import { disposeBatch } from '@niwaki/engine';
import { cbq, quantize } from '../src/index.ts';
import { calibrationConfig, calibrationSequences } from '../../testing/src/calibration-model.ts';
import { gpuMissing } from '../../testing/src/gpu.ts';

const missing = await gpuMissing();
const [out, width, groupSize] = [24, 96, 32];
const normal = (name: string, shape: [number, number]): Tensor2D => noise(shape, createDraw(2, 0).at(name), 'gaussian') as Tensor2D;

/** What a soft matrix of 2 bits gives on the current device: a product, the gradients, and the whole matrix both ways. */
async function softResults(): Promise<number[][]> {
  const before = memory().numTensors;
  const base = denseWeight(denseParameter('m.weight', normal('w', [out, width]), { role: 'matrix' }));
  const values = await base.matrix!.read().data();
  const steps = Array.from({ length: (out * width) / groupSize }, (_, g) =>
    affineStep(values, [g * groupSize, (g + 1) * groupSize], { bits: 2, grid: 'asymmetric' }),
  );
  const weight = fakeQuant(
    'm',
    base,
    {
      scales: Float32Array.from(steps, ({ scale }) => scale),
      zeros: Uint8Array.from(steps, ({ zero }) => zero),
      rounding: { a: normal('a', [out, 3]), b: normal('b', [3, width]) },
    },
    { bits: 2, groupSize, grid: 'asymmetric' },
  );
  const x = normal('x', [7, width]);
  const watched = new Map([weight.steps, ...weight.rounding].map((part) => [part, part.read()]));
  const call = createCall({ batch: {}, watched });
  const results = tidy(() => {
    const product = gradientsOf(
      () => weight.apply(x, call),
      [...watched.values(), x],
      (of) => [{ of, value: onesLike(of) }],
    );
    const open = gradientsOf(
      () => weight.undecided(call, 3),
      [...watched.values()].slice(1),
      (of) => [{ of, value: onesLike(of) }],
    );
    return [product.value, ...product.gradients, open.value, ...open.gradients] as Tensor[];
  });
  // Logits so large that nearly every entry is decided.
  const b = weight.rounding[1]!;
  b.write(tidy(() => mul(b.read(), 400)));
  const settled = await weight.settle();
  results.push(weight.roundedUp(), weight.dense(), settled.dense());
  const numbers: number[][] = [];
  for (const tensor of results) {
    numbers.push([...(await tensor.data())]);
    tensor.dispose();
  }
  x.dispose();
  disposeWeight(settled);
  disposeWeight(weight);
  expect(memory().numTensors).toBe(before);
  return numbers;
}

describe.skipIf(missing)('CBQ on WebGPU', () => {
  it('has the products and gradients of the cpu, and settles on what it is', async () => {
    await init({ device: 'webgpu', software: true });
    const given = await softResults();
    await init({ device: 'cpu' });
    const expected = await softResults();
    await init({ device: 'webgpu', software: true });
    for (const [i, values] of given.slice(0, -3).entries()) {
      const scale = Math.max(...expected[i]!.map(Math.abs));
      // A value within rounding of a code may lie on its other side: h starts again, and so does nothing else.
      for (const [k, value] of values.entries()) expect(Math.abs(value - expected[i]![k]!)).toBeLessThan(1e-4 * scale);
    }
    // The packed kernel multiplies code and zero by the step apart: an ulp or two of the largest value.
    const [up, soft, settled] = given.slice(-3) as [number[], number[], number[]];
    const decided = up.flatMap((h, k) => (h === 0 || h === 1 ? [k] : []));
    expect(decided.length).toBeGreaterThan(0.98 * up.length);
    const largest = Math.max(...soft.map(Math.abs));
    for (const k of decided) expect(Math.abs(settled[k]! - soft[k]!)).toBeLessThan(2.5e-7 * largest);
  });

  it('fits a model and leaves no tensor', async () => {
    await init({ device: 'webgpu', software: true });
    const before = memory().numTensors;
    const model = await initializeModel(calibrationConfig, { seed: 1, trainable: false });
    const batches = calibrationSequences(2, 12).map((row) => tokenBatch([row], { vocabularySize: calibrationConfig.vocab_size }));
    const losses: number[] = [];
    const activations = { bits: 4, per: 'tensor', attention: ['keys'] } as const;
    const method = cbq({ bits: 2, groupSize: 32, epochs: 2, activations });
    await quantize(model, method, { calibrate: { batches, onFit: ({ loss }) => losses.push(loss) } });
    expect(losses).toHaveLength(4);
    expect(losses.every(Number.isFinite)).toBe(true);
    expect(model.sites('all-linear').every(({ weight, input }) => weight!.kind === 'affine' && input!.bits === 4)).toBe(true);
    batches.forEach(disposeBatch);
    model.dispose();
    expect(memory().numTensors).toBe(before);
  });
});
