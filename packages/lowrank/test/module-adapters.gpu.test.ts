import { describe, expect, it } from 'vitest';
import { memory } from '@niwaki/tensor';
import { distance, logits, train } from '../../testing/src/contract-model.ts';
import { gpuMissing, init } from '../../testing/src/gpu.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { compacter, ia3, prefixTuning, promptTuning, qst } from '../src/index.ts';
import { adapt, type AdapterMethod } from '@niwaki/peft';

const missing = await gpuMissing();

/** Three steps on the contract's batch, which says where its rows begin: losses, and logits after. */
async function trained(make: () => AdapterMethod, at: string | readonly string[]): Promise<{ losses: number[]; after: Float32Array }> {
  const before = memory().numTensors;
  const model = await tinyLlama();
  await adapt(model, make(), { at });
  const { losses } = await train(model, { steps: 3 });
  const after = await logits(model);
  model.dispose();
  expect(memory().numTensors).toBe(before);
  return { losses, after };
}

describe.skipIf(missing)('adapters of modules on WebGPU', () => {
  it.each<[string, () => AdapterMethod, string | readonly string[]]>([
    ['IA3', () => ia3(), ['k_proj', 'v_proj', 'down_proj']],
    ['prefix tuning', () => prefixTuning({ virtualTokens: 3 }), '**.self_attn'],
    ['prompt tuning', () => promptTuning({ virtualTokens: 3 }), 'embed_tokens'],
    ['QST', () => qst({ reduction: 2, rank: 4 }), '**'],
    ['Compacter', () => compacter({ reduction: 4, division: 2 }), ['**.self_attn', '**.mlp']],
  ])('train as on the cpu device: %s', async (_, make, at) => {
    await init({ device: 'webgpu', software: true });
    const gpu = await trained(make, at);
    await init({ device: 'cpu' });
    const cpu = await trained(make, at);
    expect(Math.max(...gpu.losses.map((loss, i) => Math.abs(loss - cpu.losses[i]!)))).toBeLessThan(1e-4);
    expect(distance(gpu.after, cpu.after)).toBeLessThan(2e-3);
  });
});
