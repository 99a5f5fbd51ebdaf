import { describe, expect, it } from 'vitest';
import { memory } from '@niwaki/tensor';
import { recipeKit, sgd } from '../src/index.ts';
import { trial } from '../../testing/src/transform-trial.ts';

describe('optimizers that a recipe names', () => {
  it.each([
    ['adamw', { state: '8bit' }],
    ['sgd', { momentum: 0.9 }],
    ['lion', {}],
    ['galore', { rank: 2, state: '8bit' }],
    ['q-galore', { rank: 2 }],
    ['frugal', { density: 0.5 }],
  ])('%s comes from data and goes downhill', async (kind, options) => {
    const before = memory().numTensors;
    const data = JSON.parse(JSON.stringify({ learningRate: 0.01, ...options })) as Record<string, never>;
    const run = trial(
      recipeKit.optimizers[kind]!(data),
      Array.from({ length: 64 }, () => 1),
      { shape: [8, 8] },
    );
    let values = run.values();
    for (let i = 0; i < 5; i++) values = await run.step(values, { rate: 0.01 });
    expect(values.reduce((sum, value) => sum + value ** 2, 0)).toBeLessThan(64);
    run.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('refuse options that they do not understand', () => {
    expect(() => recipeKit.optimizers['galore']!({ learningRate: 1 })).toThrow(/rank/);
    expect(() => sgd({ learningRate: 1, state: '8bit' })).toThrow(/momentum/);
  });
});
