import { expect, it } from 'vitest';
import { createDraw, memory } from '@niwaki/tensor';
import { adamw } from '@niwaki/optim';
import { causalLM, createStep, disposeBatch, languageBatch, type IdleState, type Participant } from '@niwaki/engine';
import { cloned, deviceStates } from '../../testing/src/contract-model.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';

const optimizer = adamw({ learningRate: 1 });
const only = (pattern: RegExp): Participant => ({
  name: String(pattern),
  begin: ({ parameters }) => new Set(parameters.filter(({ path }) => pattern.test(path))),
});

it('trains what every participant lets train, tells them how it ended, and leaks nothing', async () => {
  const before = memory().numTensors;
  const model = await tinyLlama();
  const batch = languageBatch([{ ids: [1, 2, 3] }], { vocabularySize: 32 });
  const log: string[] = [];
  const listener: Participant = { name: 'log', end: async ({ attempt, applied }) => void log.push(`${attempt} ${applied}`) };
  const participants = [only(/layers\.1/), only(/proj/), listener];
  const step = createStep({ model, objective: causalLM(), optimizer, participants });
  for (let attempt = 0; attempt < 2; attempt++) {
    await step.run({ batches: [batch], attempt, rate: 0.01, progress: 0, draw: createDraw(1, attempt) });
  }
  expect([...step.state().keys()].every((path) => /layers\.1.*proj/.test(path))).toBe(true);
  expect(step.state().size).toBe(7);
  expect(log).toEqual(['0 true', '1 true']);
  const nothing = createStep({ model, objective: causalLM(), optimizer, participants: [only(/layers\.1/), only(/layers\.0/)] });
  await expect(nothing.run({ batches: [batch], attempt: 0, rate: 0.01, progress: 0, draw: createDraw(1, 0) })).rejects.toThrow(
    /nothing to train/,
  );
  for (const thing of [step, nothing, model]) thing.dispose();
  disposeBatch(batch);
  expect(memory().numTensors).toBe(before);
});

it.each([
  ['keep', 'keep', 2],
  ['keep', 'offload', 1],
  ['keep', undefined, 1],
  ['offload', 'drop', 1],
] as const)('keeps the state of what %s and %s leave out where both do', async (first, second, sets) => {
  const before = memory().numTensors;
  const model = await tinyLlama();
  const batch = languageBatch([{ ids: [1, 2, 3] }], { vocabularySize: 32 });
  // In turns a block each, by two that say the same.
  const turns = (idleState: IdleState | undefined): Participant => ({
    name: String(idleState),
    begin: ({ parameters, attempt }) => new Set(parameters.filter(({ path }) => path.includes(`layers.${attempt % 2}.`))),
    ...(idleState && { idleState }),
  });
  const step = createStep({ model, objective: causalLM(), optimizer, participants: [turns(first), turns(second)] });
  const held: number[] = [];
  for (let attempt = 0; attempt < 3; attempt++) {
    await step.run({ batches: [batch], attempt, rate: 0.01, progress: 0, draw: createDraw(1, attempt) });
    held.push(step.stateBytes());
  }
  expect(held).toEqual([1, sets, sets].map((count) => count * held[0]!));
  // Those in host memory are saved with the others.
  expect(step.state().size).toBe((second === undefined || second === 'drop' ? 1 : 2) * 9);
  for (const thing of [step, model]) thing.dispose();
  disposeBatch(batch);
  expect(memory().numTensors).toBe(before);
});

it('refuses a state that another storage or another optimizer saved, by name', async () => {
  const model = await tinyLlama();
  const step = createStep({ model, objective: causalLM(), optimizer });
  const other = createStep({ model, objective: causalLM(), optimizer: adamw({ learningRate: 1, state: { minSize: 64 } }) });
  const copy = new Map([...deviceStates(step)].map(([path, state]) => [path, cloned(state)]));
  expect(() => other.restore(copy, 0)).toThrow(/has the entries adam.momentum, adam.variance; this optimizer has adam.momentum.codes/);
  for (const state of copy.values()) for (const value of Object.values(state)) if (typeof value !== 'number') value.dispose();
  for (const thing of [step, other, model]) thing.dispose();
});
