// Trained for a while: beside the tests with real models, once, on the wasm device.
import { describe, expect, it } from 'vitest';
import { createStep } from '@niwaki/engine';
import { createDraw, memory, openMemoryLedger } from '@niwaki/tensor';
import {
  adamw,
  causalLM,
  disposeBatch,
  frugal,
  fullTapeBackprop,
  galore,
  int8Weights,
  languageBatch,
  lisa,
  qGalore,
  quantize,
  sgd,
  type Participant,
  type Transform,
} from '../src/index.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';

const config = {
  vocab_size: 48,
  hidden_size: 64,
  intermediate_size: 128,
  head_dim: 16,
  num_attention_heads: 4,
  num_key_value_heads: 4,
  initializer_range: 0.05,
};
const steps = 60;

/** A language with something to learn: each id follows from the two before it, for five different starts. */
const rows = Array.from({ length: 5 }, (_, row) => {
  const ids = [row + 1, 2 * row + 3];
  while (ids.length < 24) ids.push((3 * ids.at(-1)! + 5 * ids.at(-2)! + 1) % 48);
  return { ids };
});

/** Mean loss of the last ten steps. @param rounding of int8 weights; where it is given only matrices train, or 'float' of them */
async function lossOf(optimizer: Transform, rate: number, rounding?: 'float' | 'stochastic' | 'nearest'): Promise<number> {
  const before = memory().numTensors;
  const model = await tinyLlama(config);
  if (rounding !== undefined) {
    for (const parameter of model.parameters().values()) parameter.trainable = parameter.role === 'matrix';
    if (rounding !== 'float') await quantize(model, int8Weights({ rounding }));
  }
  const batch = languageBatch(rows, { vocabularySize: 48 });
  const step = createStep({ model, objective: causalLM(), optimizer });
  let late = 0;
  for (let attempt = 0; attempt < steps; attempt++) {
    const falling = rate * Math.min(1, (attempt + 1) / 5) * (1 - (0.9 * attempt) / steps);
    const { loss } = await step.run({ batches: [batch], attempt, rate: falling, progress: attempt / steps, draw: createDraw(1, attempt) });
    if (attempt >= steps - 10) late += loss / 10;
  }
  step.dispose();
  model.dispose();
  disposeBatch(batch);
  expect(memory().numTensors).toBe(before);
  return late;
}

describe('on a small language', () => {
  it('AdamW in 8 bits, GaLore and FRUGAL learn nearly as AdamW does', { timeout: 300_000 }, async () => {
    const full = await lossOf(adamw({ learningRate: 1, weightDecay: 0 }), 0.004);
    const small = await lossOf(adamw({ learningRate: 1, weightDecay: 0, state: '8bit' }), 0.004);
    const projected = await lossOf(galore({ learningRate: 1, rank: 16, every: 20, scale: 1 }), 0.004);
    const split = await lossOf(frugal({ learningRate: 1, every: 20 }), 0.004);
    // From 3.9 nats.
    expect(full).toBeLessThan(0.1);
    expect(Math.abs(small / full - 1)).toBeLessThan(0.02);
    // In perplexity, at a quarter of the width; FRUGAL in between, as in its paper.
    expect(Math.exp(projected - full)).toBeLessThan(1.03);
    expect(split).toBeLessThan(projected);
  });
});

it('Q-GaLore learns in bytes as GaLore does in floats, and not where it rounds to the nearest', { timeout: 300_000 }, async () => {
  const options = { learningRate: 1, rank: 16, every: 20, scale: 1 };
  const floats = await lossOf(galore(options), 3e-4, 'float');
  const bytes = await lossOf(qGalore(options), 3e-4, 'stochastic');
  const nearest = await lossOf(qGalore(options), 3e-4, 'nearest');
  expect(Math.abs(bytes / floats - 1)).toBeLessThan(0.01);
  expect(nearest).toBeGreaterThan(1.2 * floats);
});

it('keeps fewer activations the fewer blocks train', async () => {
  const peakOf = async (active: number): Promise<number> => {
    const model = await tinyLlama({ ...config, num_hidden_layers: 4 });
    const batch = languageBatch(rows, { vocabularySize: 48 });
    const participants: Participant[] = [lisa({ active })];
    const step = createStep({
      model,
      objective: causalLM(),
      optimizer: sgd({ learningRate: 1 }),
      participants,
      commit: 'eager',
      estimator: fullTapeBackprop(),
    });
    const ledger = openMemoryLedger();
    const start = ledger.bytes();
    await step.run({ batches: [batch], attempt: 0, rate: 0.01, progress: 0, draw: createDraw(1, 0) });
    const peak = ledger.peak() - start;
    ledger.dispose();
    step.dispose();
    model.dispose();
    disposeBatch(batch);
    return peak;
  };
  const [one, all] = [await peakOf(1), await peakOf(4)];
  expect(one).toBeLessThan(0.9 * all);
});
