import { describe, expect, it } from 'vitest';
import { createDraw, isOnDevice, openMemoryLedger, plainView, type Parameter, type RawTensor, type Tensor } from '@niwaki/tensor';
import type { Model } from '@niwaki/nn';
import { affine, encodeAffine, rowsOf } from '@niwaki/weights';
import { adamw, sgd, type Transform } from '@niwaki/optim';
import {
  causalLM,
  createStep,
  disposeBatch,
  fullTapeBackprop,
  languageBatch,
  type IdleState,
  type Participant,
  type Step,
  type StepMoment,
} from '@niwaki/engine';
import { adapt } from '@niwaki/peft';
import { lora } from '../../lowrank/src/index.ts';
import { bytesOf, cloned, deviceStates, sizeOf } from '../../testing/src/contract-model.ts';
import { disposedAfterEach } from '../../testing/src/disposed-after-each.ts';
import { outlineLlama, sevenBillion } from '../../testing/src/outline-llama.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { drawBlocks, lisa } from '../src/index.ts';

const config = { num_hidden_layers: 4, hidden_size: 8, head_dim: 4, num_attention_heads: 2, num_key_value_heads: 1, intermediate_size: 12 };
const blocks = 4;
const policies: readonly IdleState[] = ['drop', 'keep', 'offload'];
const things = disposedAfterEach();

async function ground(
  participants: readonly Participant[],
  optimizer: Transform = adamw({ learningRate: 1, weightDecay: 0.1 }),
): Promise<{ model: Model; step: Step; run(attempt: number, by?: Step): Promise<boolean> }> {
  const model = await tinyLlama(config);
  const step = createStep({ model, objective: causalLM(), optimizer, participants });
  const batch = languageBatch([{ ids: [3, 1, 4, 1, 5, 9, 2, 6] }], { vocabularySize: 32 });
  things.push({ dispose: () => disposeBatch(batch) });
  things.push(model, step);
  const run = async (attempt: number, by: Step = step): Promise<boolean> =>
    (await by.run({ batches: [batch], attempt, rate: 0.01, progress: 0, draw: createDraw(5, attempt) })).applied;
  return { model, step, run };
}

const isRaw = (value: Tensor | RawTensor | number): boolean => typeof value === 'object' && !isOnDevice(value);
const blockOf = (path: string): number => Number(/layers\.(\d+)\./.exec(path)?.[1] ?? -1);
const bytes = (model: Model): Promise<Map<string, string>> => bytesOf(model.parameters().values());

/** Blocks that changed; -1 stands for what is outside. */
async function changedBlocks(model: Model, before: ReadonlyMap<string, string>): Promise<number[]> {
  const after = await bytes(model);
  return [...new Set([...before.keys()].filter((path) => after.get(path) !== before.get(path)).map(blockOf))].sort((a, b) => a - b);
}

/** Adam's moments of what trains, or waits on the device. */
const adamOf = (step: Step, path: string): { momentum: Float32Array; variance: Float32Array } => {
  const state = deviceStates(step).get(path)!;
  const [momentum, variance] = ['adam.momentum', 'adam.variance'].map((name) => (state[name] as Tensor).dataSync() as Float32Array);
  return { momentum: momentum!, variance: variance! };
};
const momentsOf = (step: Step): Map<string, readonly number[]> =>
  new Map([...step.state().keys()].map((path) => [path, Object.values(adamOf(step, path)).flatMap((values) => [...values])]));

describe('lisa', () => {
  it('draws every block as often as the others, and the same ones for the same seed', () => {
    const counts = Array.from({ length: 32 }, () => 0);
    for (let step = 0; step < 10_000; step++) {
      const drawn = drawBlocks(32, 2, createDraw(1, step).at('blocks#lisa'));
      expect(new Set(drawn).size).toBe(2);
      for (const block of drawn) counts[block]!++;
    }
    for (const count of counts) expect(Math.abs(count / 10_000 - 0.0625)).toBeLessThan(0.01);
    expect(drawBlocks(32, 2, createDraw(9, 3).at('x'))).toEqual(drawBlocks(32, 2, createDraw(9, 3).at('x')));
  });

  it.each(policies)('changes the drawn blocks and the ends in every step, and no other, whatever was learned before: %s', async (state) => {
    const { model, run } = await ground([lisa({ active: 1, every: 3, state })]);
    const seen: number[][] = [];
    for (let attempt = 0; attempt < 12; attempt++) {
      const before = await bytes(model);
      await run(attempt);
      seen.push(await changedBlocks(model, before));
    }
    for (const [attempt, changed] of seen.entries()) {
      expect(changed.length).toBe(2);
      expect(changed[0]).toBe(-1);
      expect(changed).toEqual(seen[attempt - (attempt % 3)]);
    }
    expect(new Set(seen.map(String)).size).toBeGreaterThan(1);
  });

  it('moves all of what is outside in every step', async () => {
    const { model, run } = await ground([lisa({ active: 1, every: 1 })]);
    for (let attempt = 0; attempt < 3; attempt++) {
      const before = await bytes(model);
      await run(attempt);
      const after = await bytes(model);
      const still = [...before.keys()].filter((path) => blockOf(path) < 0 && before.get(path) === after.get(path));
      expect(still).toEqual([]);
    }
  });

  it.each(policies)('holds gradients of what trains, and state of as much as its policy says: %s', async (state) => {
    const { model, step, run } = await ground([lisa({ active: 2, every: 2, state })]);
    expect(step.stateBytes()).toBe(0);
    const all = [...model.parameters().values()];
    const entries = (wanted: (parameter: Parameter) => boolean): number =>
      all.filter(wanted).reduce((sum, { shape }) => sum + sizeOf(shape), 0);
    const ends = entries(({ path }) => blockOf(path) < 0);
    const block = entries(({ path }) => blockOf(path) === 0);
    expect(step.plan.peakBytes).toBe(4 * entries(() => true));
    const ledger = openMemoryLedger();
    const rest = ledger.bytes();
    const seen = new Set<number>();
    const visited: number[] = [];
    for (let attempt = 0; attempt < 12; attempt++) {
      const before = await bytes(model);
      await run(attempt);
      for (const changed of await changedBlocks(model, before)) if (changed >= 0) seen.add(changed);
      visited.push(seen.size);
      // Adam's two moments of four bytes an entry.
      const held = 8 * (ends + (state === 'keep' ? seen.size : 2) * block);
      expect(step.stateBytes()).toBe(held);
      expect(ledger.bytes() - rest).toBe(held);
      expect(step.plan.peakBytes).toBe(4 * (ends + 2 * block));
      const host = [...step.state().values()].flatMap((saved) => Object.values(saved).filter((value) => isRaw(value)));
      expect(host.length).toBe(state === 'offload' ? (seen.size - 2) * 2 * all.filter(({ path }) => blockOf(path) === 0).length : 0);
    }
    ledger.dispose();
    // All blocks had their turn, so that what was kept is the state of full training.
    expect(visited.at(-1)).toBe(blocks);
  });

  it('begins a block that comes back with the bias correction of a first step', async () => {
    const { model, run } = await ground([lisa({ active: 1, every: 4 })], adamw({ learningRate: 1, weightDecay: 0 }));
    let active = -1;
    const ratios: number[] = [];
    for (let attempt = 0; attempt < 24; attempt++) {
      const parameters = [...model.parameters().values()];
      const before = new Map(parameters.map(({ path, read }) => [path, read().dataSync().slice()]));
      const frozen = await bytes(model);
      await run(attempt);
      const [, now] = await changedBlocks(model, frozen);
      if (attempt > 0 && now !== active) {
        for (const parameter of parameters.filter(({ path }) => blockOf(path) === now)) {
          const moved = [...parameter.read().dataSync()].map((value, i) => Math.abs(value - before.get(parameter.path)![i]!));
          const largest = Math.max(...moved);
          ratios.push(largest / 0.01);
        }
      }
      active = now!;
    }
    expect(ratios.length).toBeGreaterThan(8);
    for (const ratio of ratios) expect(Math.abs(ratio - 1)).toBeLessThan(1e-3);
  });

  it('lets a block that comes back go on with its moments and its own count of updates, where its state is kept', async () => {
    const { model, step, run } = await ground([lisa({ active: 1, every: 2, state: 'keep' })], adamw({ learningRate: 1, weightDecay: 0 }));
    const parameters = [...model.parameters().values()];
    const counts = new Map<number, number>();
    const left = new Map<string, readonly number[]>();
    // Moments as a block comes back and as it left.
    const returns: (readonly [unknown, unknown])[] = [];
    let last = -1;
    for (let attempt = 0; attempt < 24; attempt++) {
      const before = new Map(parameters.map(({ path, read }) => [path, read().dataSync().slice()]));
      const frozen = await bytes(model);
      const moments = momentsOf(step);
      await run(attempt);
      const now = (await changedBlocks(model, frozen))[1]!;
      const count = (counts.get(now) ?? 0) + 1;
      counts.set(now, count);
      if (now !== last && count > 1) {
        const ofBlock = (all: ReadonlyMap<string, readonly number[]>): unknown => [...all].filter(([path]) => blockOf(path) === now).sort();
        returns.push([ofBlock(moments), ofBlock(left)]);
      }
      const after = momentsOf(step);
      for (const { path, read } of parameters.filter((parameter) => blockOf(parameter.path) === now)) {
        left.set(path, after.get(path)!);
        const { momentum, variance } = adamOf(step, path);
        read()
          .dataSync()
          .forEach((value, i) => {
            const mean = momentum[i]! / (1 - 0.9 ** count);
            const moved = (0.01 * mean) / (Math.sqrt(variance[i]! / (1 - 0.999 ** count)) + 1e-8);
            expect(Math.abs(before.get(path)![i]! - moved - value)).toBeLessThan(1e-6);
          });
      }
      last = now;
    }
    expect(returns.length).toBeGreaterThan(3);
    for (const [came, went] of returns) expect(came).toEqual(went);
  });

  it('computes the same where states wait in host memory, and something else where they are dropped', async () => {
    const found = new Map<IdleState, Map<string, string>>();
    for (const state of policies) {
      const { model, run } = await ground([lisa({ active: 1, every: 2, state })]);
      for (let attempt = 0; attempt < 16; attempt++) await run(attempt);
      found.set(state, await bytes(model));
    }
    expect(found.get('offload')).toEqual(found.get('keep'));
    expect(found.get('drop')).not.toEqual(found.get('keep'));
  });

  it('draws once a step, whatever number of micro-batches it has', async () => {
    const { model, step } = await ground([lisa({ active: 1, every: 1 })]);
    const rows = [
      [3, 1, 4, 1, 5],
      [9, 2, 6, 5, 3],
      [5, 8, 9, 7, 9],
    ];
    const batches = rows.map((ids) => languageBatch([{ ids }], { vocabularySize: 32 }));
    for (let attempt = 0; attempt < 4; attempt++) {
      const before = await bytes(model);
      await step.run({ batches, attempt, rate: 0.01, progress: 0, draw: createDraw(5, attempt) });
      expect((await changedBlocks(model, before)).length).toBe(2);
    }
    batches.forEach(disposeBatch);
  });

  it.each(policies)('of all blocks is the optimizer alone, bit for bit: %s', async (state) => {
    const [some, whole] = [await ground([lisa({ active: blocks, every: 2, state })]), await ground([])];
    for (let attempt = 0; attempt < 5; attempt++) await some.run(attempt);
    for (let attempt = 0; attempt < 5; attempt++) await whole.run(attempt);
    expect(await bytes(some.model)).toEqual(await bytes(whole.model));
  });

  it('gives the embedding the gradient of full training, through the frozen blocks', async () => {
    const optimizer = sgd({ learningRate: 1 });
    const [some, whole] = [await ground([lisa({ active: 1 })], optimizer), await ground([], optimizer)];
    await some.run(0);
    await whole.run(0);
    const [a, b] = [await bytes(some.model), await bytes(whole.model)];
    expect([...a.keys()].filter((path) => blockOf(path) < 0 && a.get(path) !== b.get(path))).toEqual([]);
    expect(a).not.toEqual(b);
  });

  it('trains 666,914,816 numbers of Llama-2-7B at a time', () => {
    const model = outlineLlama(sevenBillion);
    const parameters = [...model.parameters().values()];
    const entries = (of: Iterable<Parameter>): number => [...of].reduce((sum, { shape }) => sum + sizeOf(shape), 0);
    expect(entries(parameters)).toBe(6_738_415_616);
    const chosen = lisa().begin!({ model, attempt: 19, draw: createDraw(5, 19), parameters } as unknown as StepMoment)!;
    expect(entries(chosen)).toBe(666_914_816);
    // Two blocks, and the same ones from step 0 to 19.
    const blocksOf = (of: Iterable<Parameter>): Set<number> => new Set([...of].map(({ path }) => blockOf(path)));
    expect(blocksOf(chosen).size).toBe(1 + 2);
    const first = lisa({ active: 2, every: 20 }).begin!({
      model,
      attempt: 0,
      draw: createDraw(5, 0),
      parameters,
    } as unknown as StepMoment)!;
    expect(blocksOf(first)).toEqual(blocksOf(chosen));
  });

  it('keeps less of a forward the fewer blocks train', async () => {
    const { model } = await ground([]);
    const batch = languageBatch([{ ids: [3, 1, 4, 1, 5, 9, 2, 6] }], { vocabularySize: 32 });
    const parameters = [...model.parameters().values()];
    const held: number[] = [];
    for (const active of [1, 2, 3, 4]) {
      const draw = createDraw(5, 0);
      const wrt = lisa({ active }).begin!({ model, attempt: 0, draw, parameters } as unknown as StepMoment)!;
      const ledger = openMemoryLedger();
      const before = ledger.bytes();
      const objective = causalLM();
      const after: number[] = [];
      const loss = await fullTapeBackprop().estimate(
        {
          model,
          objective,
          batch,
          wrt,
          view: plainView,
          at: { attempt: 0, phaseStep: 0, micro: 0, pass: 0 },
          draw,
          scale: 1,
          between: async () => void after.push(ledger.bytes() - before),
        },
        { push: (_, gradient) => gradient.kind === 'dense' && gradient.value.dispose() },
      );
      // Behind the last block: a piece a stage on the way forward, the head's apart.
      held.push(after[model.stages().length - 2]!);
      loss.dispose();
      ledger.dispose();
    }
    disposeBatch(batch);
    // Of 8 rows what q, k and v read, what gate and up read, and what down reads; the output map's input is the attention's own.
    const block = 4 * 8 * (8 + 8 + 12);
    expect(held.slice(1).map((bytes, i) => bytes - held[i]!)).toEqual([block, block, block]);
  });

  it.each(policies)('goes on in the middle of an interval as if it had never stopped: %s', async (state) => {
    const method = (): Participant => lisa({ active: 1, every: 3, state });
    const straight = await ground([method()]);
    for (let attempt = 0; attempt < 18; attempt++) await straight.run(attempt);
    const { model, step, run } = await ground([method()]);
    for (let attempt = 0; attempt < 11; attempt++) await run(attempt);
    const next = createStep({
      model,
      objective: causalLM(),
      optimizer: adamw({ learningRate: 1, weightDecay: 0.1 }),
      participants: [method()],
    });
    things.push(next);
    next.restore(new Map([...step.state()].map(([path, saved]) => [path, cloned(saved)])), step.updates());
    for (let attempt = 11; attempt < 18; attempt++) await run(attempt, next);
    expect(await bytes(model)).toEqual(await bytes(straight.model));
    expect(next.stateBytes()).toBe(straight.step.stateBytes());
  });

  it('trains two blocks for twenty steps where nothing is said', () => {
    expect(lisa().name).toBe(lisa({ active: 2, every: 20, blocks: '**.layers.*' }).name);
    expect(lisa().name).toBe('lisa 2 of **.layers.* every 20');
    expect(lisa().name).toBe(lisa({ state: 'drop' }).name);
    expect(lisa({ state: 'keep' }).name).not.toBe(lisa().name);
    expect(lisa({ state: 'keep' }).name).toBe(lisa({ state: 'offload' }).name);
  });

  it('refuses what it cannot do', async () => {
    expect(() => lisa({ active: 0 })).toThrow(/active/);
    expect(() => lisa({ every: 0 })).toThrow(/every/);
    expect(() => lisa({ state: 'lose' as IdleState })).toThrow(/state must be one of/);
    const { model, run } = await ground([lisa({ active: 5 })]);
    await expect(run(0)).rejects.toThrow(/names 4/);
    await expect((await ground([lisa({ blocks: 'transformer.h.*' })])).run(0)).rejects.toThrow(/cannot find the blocks/);
    for (const parameter of model.parameters().values()) if (blockOf(parameter.path) === 2) parameter.trainable = false;
    const step = createStep({ model, objective: causalLM(), optimizer: sgd({ learningRate: 1 }), participants: [lisa()] });
    things.push(step);
    await expect(run(0, step)).rejects.toThrow(/layers\.2' has nothing that trains/);
  });

  it('refuses a block whose matrices no gradient trains, and takes it with an adapter', async () => {
    const { model, run } = await ground([lisa({ active: 1 })]);
    const stored = { bits: 4, groupSize: 8, grid: 'asymmetric' } as const;
    for (const { path, weight } of model.sites('**.layers.3.mlp.gate_proj'))
      model.replace(path, affine(path, weight!.shape, await encodeAffine(path, weight!.shape, rowsOf(weight!), stored), stored));
    // What the step trains was fixed before: norms and the matrices of the attention.
    const step = createStep({ model, objective: causalLM(), optimizer: sgd({ learningRate: 1 }), participants: [lisa({ active: 1 })] });
    things.push(step);
    await expect(run(0, step)).rejects.toThrow(/layers\.3' is quantized.*affine.*layers\.3\.mlp/);
    for (const parameter of model.parameters().values()) parameter.trainable = false;
    await adapt(model, lora({ rank: 1 }), { at: 'down_proj' });
    const adapted = createStep({ model, objective: causalLM(), optimizer: sgd({ learningRate: 1 }), participants: [lisa({ active: 1 })] });
    things.push(adapted);
    expect(await run(0, adapted)).toBe(true);
  });
});
