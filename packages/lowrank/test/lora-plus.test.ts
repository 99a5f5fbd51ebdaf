import { describe, expect, it } from 'vitest';
import { adamw, groups } from '@niwaki/optim';
import { ConfigError } from '@niwaki/tensor';
import { causalLM, createStep, disposeBatch, languageBatch } from '@niwaki/engine';
import { createDraw, type Parameter } from '@niwaki/tensor';
import type { Model } from '@niwaki/nn';
import { dora, lora, loraPlus } from '../src/index.ts';
import { adapt } from '@niwaki/peft';
import { onTiny, rows } from './support.ts';

const named = (model: Model, part: string): Parameter => {
  const found = [...model.parameters().values()].find(({ path, trainable }) => trainable && path.includes(part));
  expect([part, found === undefined]).toEqual([part, false]);
  return found!;
};

const valueOf = (setting: number | ((parameter: Parameter) => number), parameter: Parameter): number =>
  typeof setting === 'number' ? setting : setting(parameter);

describe('LoRA+', () => {
  it('goes by what a parameter is', async () => {
    const left = await onTiny(async (model) => {
      const options = { rank: 2, loraBias: true, modulesToSave: ['input_layernorm'] };
      await adapt(model, dora(options), { at: ['q_proj'], name: 'a' });
      const { rateScale, weightDecay } = groups(loraPlus({ ratio: 8, embeddingRatio: 0.5 }), { weightDecay: 0.1 });
      const of = (part: string): [number, number] => {
        const parameter = named(model, part);
        return [valueOf(rateScale, parameter), valueOf(weightDecay, parameter)];
      };
      expect(of('q_proj.lora_A.a')).toEqual([1, 0.1]);
      expect(of('q_proj.lora_B.a.weight')).toEqual([8, 0.1]);
      expect(of('q_proj.lora_B.a.bias')).toEqual([8, 0]);
      expect(of('input_layernorm')).toEqual([8, 0]);
      expect(of('lora_magnitude_vector.a')).toEqual([1, 0]);
      await adapt(model, lora({ rank: 2 }), { at: ['embed_tokens'], name: 'b' });
      expect(of('lora_embedding_A.b')).toEqual([0.5, 0.1]);
      expect(of('lora_embedding_B.b')).toEqual([0.5, 0.1]);
    });
    expect(left).toBe(0);
  });

  it("moves B by ratio times A's step in Adam's first step", async () => {
    await onTiny(async (model) => {
      await adapt(model, lora({ rank: 2, init: false }), { at: ['q_proj'] });
      const before = new Map<string, Float32Array>();
      const own = [...model.parameters().values()].filter(({ trainable }) => trainable);
      for (const parameter of own) before.set(parameter.path, (await parameter.read().data()) as Float32Array);
      const rate = 1e-3;
      const optimizer = adamw({ learningRate: rate, weightDecay: 0, groups: loraPlus({ ratio: 4 }) });
      const step = createStep({ model, objective: causalLM(), optimizer });
      const batch = languageBatch(
        rows.map((ids) => ({ ids })),
        { vocabularySize: model.info.vocabularySize },
      );
      await step.run({ batches: [batch], attempt: 0, rate, progress: 0, draw: createDraw(1, 0) });
      for (const parameter of own) {
        const [now, old] = [await parameter.read().data(), before.get(parameter.path)!];
        const moves = Array.from(now, (value, i) => Math.abs(value - old[i]!)).sort((a, b) => a - b);
        const median = moves[Math.floor(moves.length / 2)]!;
        // Adam's first step is the rate for every entry whose gradient is far from epsilon.
        expect(median / rate).toBeCloseTo(parameter.role === 'adapterB' ? 4 : 1, 1);
      }
      disposeBatch(batch);
      step.dispose();
    });
  });

  it('refuses ratios below 1 and numbers that are none', () => {
    for (const ratio of [0.5, Number.NaN, Infinity]) expect(() => loraPlus({ ratio })).toThrow(ConfigError);
    expect(() => loraPlus({ embeddingRatio: -1 })).toThrow(ConfigError);
  });
});
