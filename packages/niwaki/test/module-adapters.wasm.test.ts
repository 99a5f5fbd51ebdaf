import { describe, expect, it } from 'vitest';
import { memory } from '@niwaki/tensor';
import { exactBatches } from '@niwaki/train';
import {
  adamw,
  adapt,
  bottleneck,
  compacter,
  generate,
  ia3,
  lnTuning,
  memoryFolder,
  nf4,
  prefixTuning,
  promptTuning,
  qst,
  quantize,
  s2ft,
  spiel,
  train,
  type AdapterMethod,
  type Model,
  type RunFolder,
} from '../src/index.ts';
import { bytesOf } from '../../testing/src/contract-model.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';

const rows = Array.from({ length: 24 }, () => [Array.from({ length: 6 }, (_, t) => (3 * t + 1) % 32), [9, 8, 7]]);

interface Kind {
  readonly make: () => AdapterMethod;
  readonly at: string | readonly string[];
  /** Whether it needs the matrices in floats. */
  readonly floats?: boolean;
}
const outputs = ['**.self_attn', '**.mlp'];
const kinds: Readonly<Record<string, Kind>> = {
  ia3: { make: () => ia3(), at: ['k_proj', 'v_proj', 'down_proj'] },
  'prefix tuning': { make: () => prefixTuning({ virtualTokens: 4 }), at: '**.self_attn' },
  'prompt tuning': { make: () => promptTuning({ init: [1, 2, 3] }), at: 'embed_tokens' },
  bottleneck: { make: () => bottleneck({ reduction: 4 }), at: outputs },
  's2ft, whose slices are drawn': { make: () => s2ft({ outputRatio: 0.25, downRatio: 0.25 }), at: ['o_proj', 'down_proj'] },
  's2ft in place': {
    make: () => s2ft({ outputRatio: 0.25, downRatio: 0.25, inPlace: true }),
    at: ['o_proj', 'down_proj'],
    floats: true,
  },
  // Stopped while it looks for candidates.
  spiel: { make: () => spiel({ density: 0.05, reselectionSteps: 10, accumulationSteps: 4 }), at: 'all-linear' },
  'compacter with the norms': { make: () => compacter({ reduction: 4, division: 2 }), at: outputs },
  'ln tuning': { make: () => lnTuning(), at: ['input_layernorm', 'norm'] },
  'side tuning': { make: () => qst({ reduction: 2 }), at: '**' },
};

async function trained(
  { make, at, floats = false }: Kind,
  folder?: RunFolder,
  stopAfter = Infinity,
): Promise<{ bytes: Map<string, string>; losses: number[]; ids: number[] }> {
  const model: Model = await tinyLlama({ hidden_size: 64, intermediate_size: 64, head_dim: 16 });
  if (!floats) await quantize(model, nf4(), { at: 'all-linear' });
  await adapt(model, make(), { at, seed: 2 });
  const data = exactBatches(rows, { vocabularySize: 32 });
  const losses: number[] = [];
  const options = { data, optimizer: adamw({ learningRate: 0.02 }), seed: 3 };
  for await (const event of train(model, { ...options, ...(folder && { checkpoint: { folder, every: 6, resume: true } }) })) {
    if (event.kind === 'step') losses.push(event.loss);
    if (event.kind === 'checkpoint' && event.step === stopAfter) break;
  }
  const bytes = await bytesOf(model.parameters().values());
  const ids: number[] = [];
  for await (const { id } of generate(model, [1, 4], { maxNewTokens: 4, stopIds: [] })) ids.push(id);
  model.dispose();
  return { bytes, losses, ids };
}

describe('adapters other than low-rank ones, over 4-bit matrices where they can be, and packed rows', () => {
  it.each(Object.entries(kinds))('learn, and go on from a checkpoint as if they had not stopped: %s', async (_, kind) => {
    const before = memory().numTensors;
    const whole = await trained(kind);
    expect(whole.losses.at(-1)).toBeLessThan(whole.losses[0]! - 0.2);
    const folder = memoryFolder();
    await trained(kind, folder, 12);
    const resumed = await trained(kind, folder);
    expect(resumed.bytes).toEqual(whole.bytes);
    expect(resumed.ids).toEqual(whole.ids);
    expect(memory().numTensors).toBe(before);
  });
});
