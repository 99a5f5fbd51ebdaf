import { describe, expect, it } from 'vitest';
import { init } from '../../backend/src/index.ts';
import { createDraw, memory, mul, scatterND, tensor1d, tensor2d, tidy } from '@niwaki/tensor';
import { adamw, chain, clipByGlobalNorm } from '@niwaki/optim';
import { causalLM, createStep, disposeBatch, languageBatch, type Objective, type StepResult } from '@niwaki/engine';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { gpuMissing } from '../../testing/src/gpu.ts';

const missing = await gpuMissing();

interface Trained {
  readonly results: readonly StepResult[];
  readonly values: ReadonlyMap<string, Float32Array>;
}

/** Three steps on the current device, the second with a loss that is not a number. */
async function train(commit: 'step' | 'eager'): Promise<Trained> {
  const before = memory().numTensors;
  const model = await tinyLlama({ tie_word_embeddings: true });
  let factor = 1;
  const base = causalLM();
  const objective: Objective = { ...base, score: (outputs, target) => mul(base.score(outputs, target), factor) };
  const inner = adamw({ learningRate: 0.01, weightDecay: 0.1 });
  const optimizer = commit === 'eager' ? inner : chain(clipByGlobalNorm(1), inner);
  const step = createStep({ model, objective, optimizer, commit });
  const batch = languageBatch([{ ids: [3, 17, 5, 29, 8, 1, 22, 14] }, { ids: [9, 2, 30] }], { vocabularySize: 32 });
  const results: StepResult[] = [];
  for (const [attempt, next] of [1, NaN, 1].entries()) {
    factor = next;
    results.push(await step.run({ batches: [batch], attempt, rate: 0.01, progress: 0, draw: createDraw(1, attempt) }));
  }
  const values = new Map<string, Float32Array>();
  for (const [path, parameter] of model.parameters()) values.set(path, (await parameter.read().data()) as Float32Array);
  step.dispose();
  disposeBatch(batch);
  model.dispose();
  expect(memory().numTensors).toBe(before);
  return { results, values };
}

/** Closer than rounding of f32 sums in another order, or both not numbers. */
const near = (a: number, b: number): boolean => Object.is(a, b) || Math.abs(a - b) < 1e-4;

describe.skipIf(missing)('a step on WebGPU', () => {
  it.each(['step', 'eager'] as const)('learns what the cpu learns and refuses what it refuses, commit %s', async (commit) => {
    await init({ device: 'webgpu', software: true });
    const given = await train(commit);
    await init({ device: 'cpu' });
    const expected = await train(commit);
    await init({ device: 'webgpu', software: true });
    expect(given.results.map(({ applied }) => applied)).toEqual([true, false, true]);
    const numbers = (results: readonly StepResult[]): number[] => results.flatMap(({ loss, gradNorm }) => [loss, gradNorm]);
    const apart = numbers(given.results).filter((value, i) => !near(value, numbers(expected.results)[i]!));
    expect(apart).toEqual([]);
    for (const [path, values] of given.values) values.forEach((value, i) => expect(value).toBeCloseTo(expected.values.get(path)![i]!, 3));
  });

  it('scatters rows back exactly', async () => {
    const rows = tidy(() => scatterND(tensor2d([2, 0, 3], [3, 1], 'int32'), tensor2d([1.1, 2.2, 3.3, 4.4, 5.5, 6.6], [3, 2]), [5, 2]));
    const values = await rows.data();
    rows.dispose();
    const expected = await tensor1d([3.3, 4.4, 0, 0, 1.1, 2.2, 5.5, 6.6, 0, 0]).data();
    expect(values).toEqual(expected);
  });
});
