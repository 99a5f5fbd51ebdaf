import { describe, expect, it } from 'vitest';
import { createDraw, openMemoryLedger, plainView, type Parameter } from '@niwaki/tensor';
import type { Model } from '@niwaki/nn';
import { adamw, sgd, type Transform } from '@niwaki/optim';
import {
  causalLM,
  createStep,
  disposeBatch,
  fullTapeBackprop,
  languageBatch,
  type Participant,
  type Step,
  type StepMoment,
} from '@niwaki/engine';
import { bytesOf, cloned, sizeOf } from '../../testing/src/contract-model.ts';
import { disposedAfterEach } from '../../testing/src/disposed-after-each.ts';
import { outlineLlama, sevenBillion } from '../../testing/src/outline-llama.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { drawBlocks, lisa } from '../src/index.ts';

const config = { num_hidden_layers: 4, hidden_size: 8, head_dim: 4, num_attention_heads: 2, num_key_value_heads: 1, intermediate_size: 12 };
const blocks = 4;
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

const blockOf = (path: string): number => Number(/layers\.(\d+)\./.exec(path)?.[1] ?? -1);
const bytes = (model: Model): Promise<Map<string, string>> => bytesOf(model.parameters().values());

/** Blocks that changed; -1 stands for what is outside. */
async function changedBlocks(model: Model, before: ReadonlyMap<string, string>): Promise<number[]> {
  const after = await bytes(model);
  return [...new Set([...before.keys()].filter((path) => after.get(path) !== before.get(path)).map(blockOf))].sort((a, b) => a - b);
}

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

  it('changes the drawn blocks and the ends in every step, and no other, whatever was learned before', async () => {
    const { model, run } = await ground([lisa({ active: 1, every: 3 })]);
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

  it('holds state and gradients of what trains, and no more, from the first step on', async () => {
    const { model, step, run } = await ground([lisa({ active: 2, every: 2 })]);
    expect(step.stateBytes()).toBe(0);
    const all = [...model.parameters().values()];
    const entries = (wanted: (parameter: Parameter) => boolean): number =>
      all.filter(wanted).reduce((sum, { shape }) => sum + sizeOf(shape), 0);
    const trained = entries(({ path }) => blockOf(path) < 2);
    expect(step.plan.peakBytes).toBe(4 * entries(() => true));
    for (let attempt = 0; attempt < 6; attempt++) {
      await run(attempt);
      expect(step.stateBytes()).toBe(8 * trained);
      expect(step.plan.peakBytes).toBe(4 * trained);
    }
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

  it('of all blocks is the optimizer alone, bit for bit', async () => {
    const [some, whole] = [await ground([lisa({ active: blocks, every: 2 })]), await ground([])];
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

  it('goes on in the middle of an interval as if it had never stopped', async () => {
    const straight = await ground([lisa({ active: 1, every: 3 })]);
    for (let attempt = 0; attempt < 9; attempt++) await straight.run(attempt);
    const { model, step, run } = await ground([lisa({ active: 1, every: 3 })]);
    for (let attempt = 0; attempt < 5; attempt++) await run(attempt);
    const next = createStep({
      model,
      objective: causalLM(),
      optimizer: adamw({ learningRate: 1, weightDecay: 0.1 }),
      participants: [lisa({ active: 1, every: 3 })],
    });
    things.push(next);
    next.restore(new Map([...step.state()].map(([path, state]) => [path, cloned(state)])), step.updates());
    for (let attempt = 5; attempt < 9; attempt++) await run(attempt, next);
    expect(await bytes(model)).toEqual(await bytes(straight.model));
  });

  it('trains two blocks for twenty steps where nothing is said', () => {
    expect(lisa().name).toBe(lisa({ active: 2, every: 20, blocks: '**.layers.*' }).name);
    expect(lisa().name).toBe('lisa 2 of **.layers.* every 20');
  });

  it('refuses what it cannot do', async () => {
    expect(() => lisa({ active: 0 })).toThrow(/active/);
    expect(() => lisa({ every: 0 })).toThrow(/every/);
    const { model, run } = await ground([lisa({ active: 5 })]);
    await expect(run(0)).rejects.toThrow(/names 4/);
    await expect((await ground([lisa({ blocks: 'transformer.h.*' })])).run(0)).rejects.toThrow(/no block/);
    for (const parameter of model.parameters().values()) if (blockOf(parameter.path) === 2) parameter.trainable = false;
    const step = createStep({ model, objective: causalLM(), optimizer: sgd({ learningRate: 1 }), participants: [lisa()] });
    things.push(step);
    await expect(run(0, step)).rejects.toThrow(/layers\.2' has nothing that trains/);
  });
});
