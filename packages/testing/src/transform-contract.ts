import { describe, expect, it } from 'vitest';
import { causalLM, createStep, disposeBatch, languageBatch, type LanguageBatch, type Objective, type Step } from '@niwaki/engine';
import { chain, clipByGlobalNorm, type Transform } from '@niwaki/optim';
import type { Model } from '@niwaki/nn';
import { createDraw, descriptionOf, memory, mul, type Parameter, type Tensor } from '@niwaki/tensor';
import { beside } from './beside.ts';
import { bytesOf, cloned, deviceStates, rows } from './contract-model.ts';
import { tinyLlama } from './tiny-llama.ts';
import { trial } from './transform-trial.ts';

/** What an optimizer says of itself. Each claim is tested. */
export interface TransformCase {
  /** A new optimizer each time, whose rate comes from the step. */
  make(): Transform;
  /** Bytes of state of one parameter. */
  stateBytes(parameter: Parameter): number;
  /** A rate it learns with; default 0.01. */
  readonly rate?: number;
  /** How near it comes to the bottom of a bowl of radius 1 in 300 steps whose rate falls to 0; default 0.02. */
  readonly reaches?: number;
  /** Default true: an update of twice the rate is twice the update. */
  readonly linearInRate?: boolean;
}

/**
 * The contract of optimizers: one test a rule, for each one entered. They run on a model of 2 layers through the real step,
 * atomic and eager.
 * @example transformContract('adamw', { make: () => adamw({ learningRate: 0.01 }), stateBytes: ({ shape }) => 8 * sizeOf(shape) });
 */
export function transformContract(
  name: string,
  { make, stateBytes, rate = 0.01, reaches = 0.02, linearInRate = true }: TransformCase,
): void {
  describe(`${name}`, () => {
    it('finds the bottom of a bowl', async () => {
      const shape = [16, 12];
      const target = Array.from({ length: 192 }, (_, i) => Math.sin(i * 1.7));
      const run = trial(
        make(),
        target.map(() => 0),
        { shape, path: 'model.layers.0.mlp.up_proj.weight' },
      );
      let values = run.values();
      const steps = 300;
      for (let i = 0; i < steps; i++) {
        const gradient = values.map((value, j) => value - target[j]!);
        values = await run.step(gradient, { rate: 10 * rate * (1 - i / steps) });
      }
      expect(Math.max(...values.map((value, j) => Math.abs(value - target[j]!)))).toBeLessThan(reaches);
      run.dispose();
    });

    it('says what it was made with, as plain data', () => {
      const { options } = make();
      expect(options).toBeDefined();
      expect(descriptionOf(make())).toEqual(descriptionOf(make()));
      expect(JSON.stringify(descriptionOf(make()))).not.toContain('function');
    });

    it('lowers the loss of a model, holds the bytes that it declares, and keeps the form of its state', () =>
      onModel(
        make(),
        async ({ model, step, advance }) => {
          await advance(1);
          const form = formOf(step);
          const [held, first] = [memory().numTensors, await advance(1)];
          const losses = await advance(15);
          expect(losses.at(-1)).toBeLessThan(first[0]! - 0.1);
          expect(formOf(step)).toEqual(form);
          expect(memory().numTensors).toBe(held);
          const expected = [...model.parameters().values()].reduce((sum, parameter) => sum + stateBytes(parameter), 0);
          expect(step.stateBytes()).toBe(expected);
        },
        { rate },
      ));

    it('changes no parameter at a rate of 0', () =>
      onModel(
        make(),
        async ({ model, advance }) => {
          const before = await bytesOf(model.parameters().values());
          await advance(2);
          expect(await bytesOf(model.parameters().values())).toEqual(before);
        },
        { rate: 0 },
      ));

    if (linearInRate) {
      it('moves twice as far at twice the rate', async () => {
        const gradient = Array.from({ length: 64 }, (_, i) => Math.cos(i * 2.3));
        const [one, two] = await Promise.all(
          [1, 2].map(async (factor) => {
            const run = trial(
              make(),
              gradient.map(() => 0),
              { shape: [8, 8], path: 'model.layers.0.mlp.up_proj.weight' },
            );
            const values = await run.step(gradient, { rate: factor * rate });
            run.dispose();
            return values;
          }),
        );
        one!.forEach((value, i) => expect(two![i]! / (2 * value)).toBeCloseTo(1, 5));
      });
    }

    it('goes on from a saved state bit for bit', async () => {
      let whole = new Map<string, unknown>();
      await onModel(
        make(),
        async ({ model, step, advance }) => {
          await advance(6);
          whole = await everything(model, step);
        },
        { rate },
      );
      await onModel(
        make(),
        async ({ model, step, advance }) => {
          await advance(3);
          const next = createStep({ model, objective: causalLM(), optimizer: make() });
          next.restore(new Map([...step.state()].map(([path, state]) => [path, cloned(state)])), step.updates());
          await advance(3, next);
          expect(await everything(model, next)).toEqual(whole);
          next.dispose();
        },
        { rate },
      );
    });

    it('leaves no trace of a refused step, the first one and those that choose again included', () =>
      onModel(
        make(),
        async ({ model, step, advance, factor }) => {
          for (const updates of [0, 2, 5]) {
            factor.value = 1;
            await advance(updates - step.updates());
            const before = await everything(model, step);
            factor.value = Number.NaN;
            await advance(1, step, { applied: false });
            expect(await everything(model, step)).toEqual(before);
            expect(step.updates()).toBe(updates);
          }
        },
        { rate },
      ));

    it('gives the same bits twice, and committed stage by stage', async () => {
      const found: Map<string, unknown>[] = [];
      for (const commit of ['step', 'step', 'eager'] as const) {
        await onModel(
          make(),
          async ({ model, step, advance }) => {
            await advance(3);
            found.push(await everything(model, step));
          },
          { rate, commit },
        );
      }
      expect(found[1]).toEqual(found[0]);
      expect(found[2]).toEqual(found[0]);
    });

    it.each(['step', 'eager'] as const)('writes the bits over gradient and state that it writes beside them, commit %s', async (commit) => {
      const found: Map<string, unknown>[] = [];
      for (const optimizer of [make(), beside(make())]) {
        await onModel(
          optimizer,
          async ({ model, step, advance, factor }) => {
            await advance(2);
            factor.value = Number.NaN;
            await advance(1, step, { applied: false });
            factor.value = 1;
            await advance(2);
            found.push(await everything(model, step));
          },
          { rate, commit },
        );
      }
      expect(found[0]).toEqual(found[1]);
    });

    it('runs behind a bound on the global norm', () =>
      onModel(
        chain(clipByGlobalNorm(0.1), make()),
        async ({ advance }) => {
          const losses = await advance(8);
          expect(losses.at(-1)).toBeLessThan(losses[0]!);
        },
        { rate },
      ));
  });
}

interface Ground {
  readonly model: Model;
  readonly step: Step;
  /** Multiplies the loss. */
  readonly factor: { value: number };
  /** Runs steps on the same two rows; their losses. */
  advance(steps: number, step?: Step, expected?: { applied: boolean }): Promise<number[]>;
}

/** Steps on a model of their own, of which nothing is left. */
async function onModel(
  optimizer: Transform,
  test: (ground: Ground) => Promise<void>,
  { rate, commit = 'step' }: { rate: number; commit?: 'step' | 'eager' },
): Promise<void> {
  const before = memory().numTensors;
  const model = await tinyLlama();
  const batch: LanguageBatch = languageBatch(
    rows.map((ids) => ({ ids })),
    { vocabularySize: model.info.vocabularySize },
  );
  const factor = { value: 1 };
  const base = causalLM();
  const objective: Objective = { ...base, score: (outputs, target) => mul(base.score(outputs, target), factor.value) };
  const step = createStep({ model, objective, optimizer, commit });
  let attempt = 0;
  try {
    await test({
      model,
      step,
      factor,
      advance: async (steps, by = step, { applied } = { applied: true }) => {
        const losses: number[] = [];
        for (let i = 0; i < steps; i++, attempt++) {
          const result = await by.run({ batches: [batch], attempt, rate, progress: 0, draw: createDraw(1, attempt) });
          expect(result.applied).toBe(applied);
          losses.push(result.loss);
        }
        return losses;
      },
    });
  } finally {
    step.dispose();
    model.dispose();
    disposeBatch(batch);
  }
  expect(memory().numTensors).toBe(before);
}

const bits = (value: Tensor): string => {
  const data = value.dataSync();
  return String(new Int32Array(data.buffer, data.byteOffset, data.length));
};

/** Every parameter and every state tensor, bit for bit. */
async function everything(model: Model, step: Step): Promise<Map<string, unknown>> {
  const found = new Map<string, unknown>(await bytesOf(model.parameters().values()));
  for (const [path, state] of deviceStates(step)) {
    for (const [name, value] of Object.entries(state)) found.set(`${path}#${name}`, typeof value === 'number' ? value : bits(value));
  }
  return found;
}

/** Names, dtypes and shapes of a state. */
const formOf = (step: Step): string[] =>
  [...deviceStates(step)].flatMap(([path, state]) =>
    Object.entries(state).map(
      ([name, value]) => `${path}#${name} ${typeof value === 'number' ? 'number' : `${value.dtype} [${value.shape}]`}`,
    ),
  );
