import { describe, expect, it } from 'vitest';
import { causalLM, createStep, disposeBatch, languageBatch } from '@niwaki/engine';
import type { Model } from '@niwaki/nn';
import type { Transform } from '@niwaki/optim';
import { adapt } from '@niwaki/peft';
import { createDraw } from '@niwaki/tensor';
import type { AdapterCase } from './adapter-contract.ts';
import { distance, logits, onTiny, rows, train } from './contract-model.ts';
import { gpuMissing, init } from './gpu.ts';
import { perturb } from './perturb.ts';
import type { TransformCase } from './transform-contract.ts';
import { applyEverywhere, wide, type WeightMethodCase } from './weight-method-contract.ts';

/** What one device gives: numbers that another one must give too, within the tolerance. */
type Outcome = readonly (readonly [what: string, values: ArrayLike<number>, tolerance?: number])[];

/** f32 sums in the order of the device, through two blocks and three steps of Adam. */
const tolerance = 1e-3;

/** Software devices on a busy machine. */
const timeoutMs = 300_000;

interface Cases {
  readonly adapters: AdapterCase;
  readonly optimizers: TransformCase;
  readonly methods: WeightMethodCase;
}

const outcomes: { readonly [K in keyof Cases]: (entry: Cases[K]) => Promise<Outcome> } = {
  adapters: ({ make, at = 'all-linear' }) =>
    outcome(async (model) => {
      perturb(await adapt(model, make(), { at }), 1);
      const before = await logits(model);
      const { losses } = await train(model, { steps: 3 });
      return [
        ['logits', before],
        ['losses', losses],
      ];
    }),
  optimizers: ({ make, rate = 0.01 }) => outcome(async (model) => [['losses', await lossesOf(model, make(), rate)]]),
  methods: ({ make, drifts }) =>
    outcome(async (model) => {
      const floats = await logits(model);
      await applyEverywhere(model, make());
      const made = await logits(model);
      if (drifts === undefined) return [['logits', made]];
      const lost = Math.hypot(...made.map((value, i) => value - floats[i]!));
      return [['the logarithm of what is lost', [Math.log(lost)], 0.2]];
    }, wide),
};

/**
 * The contract of devices: what a package lists gives on WebGPU what it gives on the cpu device.
 * @example await parityContract('adapters', contractList.adapters);
 */
export async function parityContract<K extends keyof Cases>(kind: K, entries: Readonly<Record<string, Cases[K]>>): Promise<void> {
  const missing = await gpuMissing();
  const run = outcomes[kind];
  describe.skipIf(missing)(`${kind} on WebGPU`, () => {
    it.each(Object.entries(entries))(
      'give what they give on the cpu device: %s',
      async (_, entry) => {
        await init({ device: 'cpu' });
        const expected = await run(entry);
        await init({ device: 'webgpu', software: true });
        const given = await run(entry);
        for (const [i, [what, values, within = tolerance]] of given.entries()) {
          const far = distance(Float32Array.from(values), Float32Array.from(expected[i]![1]));
          // Which and how far, where it is too far.
          expect(far < within ? [] : [what, far]).toEqual([]);
        }
      },
      timeoutMs,
    );
  });
}

/** On a tiny model of which nothing is left. */
async function outcome(run: (model: Model) => Promise<Outcome>, config: Record<string, unknown> = {}): Promise<Outcome> {
  let found: Outcome = [];
  await onTiny(async (model) => void (found = await run(model)), config);
  return found;
}

async function lossesOf(model: Model, optimizer: Transform, rate: number): Promise<number[]> {
  const batch = languageBatch(
    rows.map((ids) => ({ ids })),
    { vocabularySize: model.info.vocabularySize },
  );
  const step = createStep({ model, objective: causalLM(), optimizer });
  const losses: number[] = [];
  for (let attempt = 0; attempt < 4; attempt++)
    losses.push((await step.run({ batches: [batch], attempt, rate, progress: 0, draw: createDraw(1, attempt) })).loss);
  step.dispose();
  disposeBatch(batch);
  return losses;
}
