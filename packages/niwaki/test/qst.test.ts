import { describe, expect, it } from 'vitest';
import { createStep } from '@niwaki/engine';
import { createDraw, memory } from '@niwaki/tensor';
import { adamw, adapt, causalLM, disposeBatch, languageBatch, nf4, qst, quantize, weightBytes } from '../src/index.ts';
import { bytesOf, siteParameters } from '../../testing/src/contract-model.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';

/** Eight sequences that nothing but memory can continue. */
const sequences = Array.from({ length: 8 }, (_, row) =>
  Array.from({ length: 10 }, (_, t) => (t === 0 ? row : (row * 7 + t * t * (row + 3)) % 32)),
);

describe('side tuning of a base in NF4', () => {
  it('learns eight sequences by heart, and the base stays in its 4 bits', async () => {
    const before = memory().numTensors;
    const model = await tinyLlama({ hidden_size: 64, intermediate_size: 64, head_dim: 16 });
    await quantize(model, nf4({ doubleQuant: true }), { at: 'all-linear' });
    const packed = model.sites('all-linear').reduce((bytes, { weight }) => bytes + weightBytes(weight!), 0);
    const codes = await bytesOf(siteParameters(model));
    await adapt(model, qst({ reduction: 2 }), { at: '**', seed: 2 });
    const batch = languageBatch(
      sequences.map((ids) => ({ ids })),
      model.info,
    );
    const step = createStep({ model, objective: causalLM(), optimizer: adamw({ learningRate: 0.01 }) });
    let [first, last] = [0, 0];
    for (let attempt = 0; attempt < 36; attempt++) {
      const { loss } = await step.run({ batches: [batch], attempt, rate: 0.01, progress: 0, draw: createDraw(1, attempt) });
      if (attempt === 0) first = loss;
      last = loss;
    }
    expect(first).toBeGreaterThan(3);
    expect(last).toBeLessThan(0.1);
    expect(await bytesOf(siteParameters(model))).toEqual(codes);
    expect(model.sites('all-linear').reduce((bytes, { weight }) => bytes + weightBytes(weight!), 0)).toBe(packed);
    disposeBatch(batch);
    step.dispose();
    model.dispose();
    expect(memory().numTensors).toBe(before);
  });
});
