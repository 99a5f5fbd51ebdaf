import { applyMethod, causalLM, createStep, disposeBatch, languageBatch, type Step } from '@niwaki/engine';
import type { Model } from '@niwaki/nn';
import type { Transform } from '@niwaki/optim';
import { createDraw } from '@niwaki/tensor';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { int8Weights } from '../src/index.ts';

export interface Setting {
  readonly commit?: 'step' | 'eager';
  /** Of int8 weights; absent: f32 weights. */
  readonly rounding?: 'stochastic' | 'nearest';
  readonly config?: Readonly<Record<string, unknown>>;
  readonly seed?: number;
  readonly rate?: number;
  /** The matrices alone: what else there is would learn in their place. */
  readonly matricesOnly?: boolean;
}

/** A tiny model, and steps on the same two rows. */
export interface Ground {
  readonly model: Model;
  readonly step: Step;
  /** Losses of the steps. */
  advance(steps: number, step?: Step): Promise<number[]>;
  end(): void;
}

export async function onModel(
  optimizer: Transform,
  { commit = 'step', rounding, config = {}, seed = 1, rate = 0.05, matricesOnly = false }: Setting = {},
): Promise<Ground> {
  const model = await tinyLlama(config);
  if (rounding !== undefined) await applyMethod(model, int8Weights({ rounding }), { at: 'all-linear' });
  const batch = languageBatch([{ ids: [3, 1, 4, 1, 5, 9, 2, 6] }, { ids: [2, 7, 1, 8, 2, 8] }], { vocabularySize: 32 });
  const wrt = [...model.parameters().values()].filter(({ role, trainable }) => trainable && (!matricesOnly || role === 'matrix'));
  const step = createStep({ model, objective: causalLM(), optimizer, commit, wrt });
  let attempt = 0;
  return {
    model,
    step,
    advance: async (steps, by = step) => {
      const losses: number[] = [];
      for (let i = 0; i < steps; i++, attempt++) {
        const { loss } = await by.run({ batches: [batch], attempt, rate, progress: 0, draw: createDraw(seed, attempt) });
        losses.push(loss);
      }
      return losses;
    },
    end: () => {
      step.dispose();
      model.dispose();
      disposeBatch(batch);
    },
  };
}

/** Losses of a run of the matrices alone. */
export async function lossesOf(optimizer: Transform, { steps, ...setting }: Setting & { readonly steps: number }): Promise<number[]> {
  const { advance, end } = await onModel(optimizer, { matricesOnly: true, ...setting });
  const losses = await advance(steps);
  end();
  return losses;
}
