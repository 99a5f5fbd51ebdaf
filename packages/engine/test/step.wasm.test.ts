import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { add, createDraw, dispose, keep, memory, mul, ones, scalar, sum, type Parameter, type Tensor, type Tensor1D } from '@niwaki/tensor';
import { tensorsOf } from '../src/gradient.ts';
import type { Model } from '@niwaki/nn';
import {
  addL2,
  adamw,
  chain,
  clipByGlobalNorm,
  scaleByAdam,
  scaleByLearningRate,
  scaleByMomentum,
  sgd,
  type Transform,
} from '@niwaki/optim';
import {
  blockwiseBackprop,
  causalLM,
  createStep,
  disposeBatch,
  fullTapeBackprop,
  languageBatch,
  type Estimator,
  type LanguageBatch,
  type LanguageRow,
  type Objective,
  type Step,
  type StepInput,
} from '@niwaki/engine';
import { beside } from '../../testing/src/beside.ts';
import { tinyLlama } from '../../testing/src/index.ts';
import { cloned, deviceStates } from '../../testing/src/contract-model.ts';

const long = { ids: [3, 17, 5, 29, 8, 1, 22, 14] };
const short = { ids: [9, 2, 30, 11, 6] };
const options = { vocabularySize: 32 };
const parametersOf = (model: Model): Parameter[] => [...model.parameters().values()];

const batches: LanguageBatch[] = [];
const batchOf = (...rows: LanguageRow[]): LanguageBatch => {
  const batch = languageBatch(rows, options);
  batches.push(batch);
  return batch;
};
afterEach(() => batches.splice(0).forEach(disposeBatch));

const input = (attempt: number, ...list: LanguageBatch[]): StepInput => ({
  batches: list,
  attempt,
  rate: 0.01,
  progress: attempt / 10,
  draw: createDraw(7, attempt),
});

const bitsOf = async (tensor: Tensor): Promise<Int32Array> => {
  const values = await tensor.data();
  return new Int32Array(values.buffer.slice(values.byteOffset, values.byteOffset + values.byteLength));
};

/** Every parameter's bits, then every state tensor's, by name. */
async function bitsIn(model: Model, step?: Step): Promise<Map<string, Int32Array | number>> {
  const bits = new Map<string, Int32Array | number>();
  for (const parameter of parametersOf(model)) bits.set(parameter.path, await bitsOf(parameter.read()));
  for (const [path, state] of step === undefined ? [] : deviceStates(step)) {
    for (const [name, value] of Object.entries(state)) bits.set(`${path}#${name}`, typeof value === 'number' ? value : await bitsOf(value));
  }
  return bits;
}

/** causalLM with a loss multiplied by `factor.value`: NaN and infinities on order. */
function spoiled(factor: { value: number }): Objective {
  const base = causalLM();
  return { ...base, score: (outputs, target) => mul(base.score(outputs, target), factor.value) };
}

const trained = adamw({ learningRate: 0.01, weightDecay: 0.1 });
const plain = sgd({ learningRate: 0.01, momentum: 0.9 });

it('lowers the loss of one batch and reports its tokens and gradient norm', async () => {
  const model = await tinyLlama();
  const step = createStep({ model, objective: causalLM(), optimizer: trained });
  const batch = batchOf(long, short);
  const losses: number[] = [];
  for (let attempt = 0; attempt < 30; attempt++) {
    const result = await step.run(input(attempt, batch));
    expect(result).toMatchObject({ applied: true, tokens: 7 + 4 });
    expect(result.gradNorm).toBeGreaterThan(0);
    losses.push(result.loss);
  }
  expect(losses[0]).toBeGreaterThan(3);
  expect(losses.at(-1)).toBeLessThan(0.5);
  expect(step.updates()).toBe(30);
  step.dispose();
  model.dispose();
});

describe('accumulation', () => {
  it('weighs token losses by the tokens of the whole window, not by micro-batch', async () => {
    // Token losses [4] and [1, 1, 1]: the mean over four tokens is 1.75, a mean of means would be 2.5.
    const model = await tinyLlama();
    const given: Objective = {
      ...causalLM(),
      score: ({ logits }, target) => {
        const none = sum(mul(logits!, 0), 1);
        return add(none, target.size === 1 ? 4 : 1) as Tensor1D;
      },
    };
    const step = createStep({ model, objective: given, optimizer: plain });
    const { loss, tokens } = await step.run(input(0, batchOf({ ids: [1, 2] }), batchOf({ ids: [3, 4, 5, 6] })));
    expect(loss).toBeCloseTo(1.75, 6);
    expect(tokens).toBe(4);
    step.dispose();
    model.dispose();
  });

  it('of two micro-batches is one batch of both, a batch without targets counts for nothing', async () => {
    const [one, two] = [await tinyLlama(), await tinyLlama()];
    const make = (model: Model): Step => createStep({ model, objective: causalLM(), optimizer: sgd({ learningRate: 0.1 }) });
    const [together, apart] = [make(one), make(two)];
    const a = await together.run(input(0, batchOf(long, short)));
    const b = await apart.run(input(0, batchOf(long), batchOf({ ids: [5] }), batchOf(short)));
    expect(b.loss).toBeCloseTo(a.loss, 6);
    expect(b.gradNorm).toBeCloseTo(a.gradNorm, 6);
    expect(b.tokens).toBe(a.tokens);
    const [p, q] = [parametersOf(one), parametersOf(two)];
    for (const [i, parameter] of p.entries()) {
      const [x, y] = [await parameter.read().data(), await q[i]!.read().data()];
      x.forEach((value, j) => expect(y[j]).toBeCloseTo(value, 6));
    }
    for (const thing of [together, apart, one, two]) thing.dispose();
  });

  it('refuses a window without a single target', async () => {
    const model = await tinyLlama();
    const step = createStep({ model, objective: causalLM(), optimizer: plain });
    await expect(step.run(input(0, batchOf({ ids: [5] })))).rejects.toMatchObject({ name: 'DataError' });
    step.dispose();
    model.dispose();
  });
});

describe('what changes', () => {
  it('is the trained parameters, all of them, and only they have state', async () => {
    const model = await tinyLlama({}, { trainable: false });
    const some = parametersOf(model).filter(({ path }) => /layers\.1\.(self_attn|input)/.test(path));
    for (const parameter of some) parameter.trainable = true;
    const step = createStep({ model, objective: causalLM(), optimizer: trained });
    const before = await bitsIn(model);
    for (let attempt = 0; attempt < 3; attempt++) await step.run(input(attempt, batchOf(long, short)));
    const after = await bitsIn(model);
    const changed = [...before].filter(([path, bits]) => String(after.get(path)) !== String(bits)).map(([path]) => path);
    expect(changed.sort()).toEqual(some.map(({ path }) => path).sort());
    expect([...step.state().keys()].sort()).toEqual(changed);
    const entries = some.reduce((sum, { shape }) => sum + shape.reduce((product, side) => product * side, 1), 0);
    expect(step.stateBytes()).toBe(8 * entries);
    expect(step.plan.peakBytes).toBe(4 * entries);
    step.dispose();
    model.dispose();
  });

  it('is nothing when the loss is not a number, and bias correction does not count the step', async () => {
    const [model, twin] = [await tinyLlama(), await tinyLlama()];
    const factor = { value: 1 };
    const step = createStep({ model, objective: spoiled(factor), optimizer: trained });
    const clean = createStep({ model: twin, objective: causalLM(), optimizer: trained });
    const batch = batchOf(long, short);
    await step.run(input(0, batch));
    const before = await bitsIn(model, step);
    for (const value of [NaN, Infinity, -Infinity]) {
      factor.value = value;
      const { applied, loss } = await step.run(input(1, batch));
      expect(applied).toBe(false);
      expect(Number.isFinite(loss)).toBe(false);
    }
    expect(await bitsIn(model, step)).toEqual(before);
    expect(step.updates()).toBe(1);
    factor.value = 1;
    await step.run(input(2, batch));
    for (const attempt of [0, 2]) await clean.run(input(attempt, batch));
    expect(await bitsIn(model, step)).toEqual(await bitsIn(twin, clean));
    for (const thing of [step, clean, model, twin]) thing.dispose();
  });

  it('is nothing when a finite loss has a gradient that overflows', async () => {
    const model = await tinyLlama();
    // 1e30 times a loss of about 3 is finite; its gradients' squares are not.
    const step = createStep({ model, objective: spoiled({ value: 1e30 }), optimizer: trained });
    const before = await bitsIn(model, step);
    const { applied, loss } = await step.run(input(0, batchOf(long)));
    expect(Number.isFinite(loss)).toBe(true);
    expect(applied).toBe(false);
    expect(await bitsIn(model, step)).toEqual(before);
    step.dispose();
    model.dispose();
  });

  it('is put back in the numbers of a state too', async () => {
    const counting: Transform<{ count: number }> = {
      name: 'count',
      init: () => ({ count: 0 }),
      update: (gradient, { count }) => ({ update: gradient, state: { count: count + 1 } }),
    };
    const model = await tinyLlama();
    const factor = { value: 1 };
    const step = createStep({ model, objective: spoiled(factor), optimizer: counting as unknown as Transform });
    const counts = (): Set<unknown> => new Set([...step.state().values()].map((state) => state['count']));
    await step.run(input(0, batchOf(long)));
    factor.value = NaN;
    await step.run(input(1, batchOf(long)));
    expect(counts()).toEqual(new Set([1]));
    step.dispose();
    model.dispose();
  });
});

describe('eager commits', () => {
  it.each([
    ['sgd', plain],
    ['adamw', trained],
  ])('give the bits of atomic ones with %s', async (_, optimizer) => {
    const config = { tie_word_embeddings: true };
    const models = [await tinyLlama(config), await tinyLlama(config), await tinyLlama(config)] as const;
    const steps = [
      createStep({ model: models[0], objective: causalLM(), optimizer }),
      createStep({ model: models[1], objective: causalLM(), optimizer, commit: 'eager' }),
      createStep({ model: models[2], objective: causalLM(), optimizer, commit: 'eager', estimator: fullTapeBackprop() }),
    ];
    for (let attempt = 0; attempt < 3; attempt++) {
      for (const step of steps) await step.run(input(attempt, batchOf(long, short)));
    }
    const expected = await bitsIn(models[0], steps[0]);
    expect(await bitsIn(models[1], steps[1])).toEqual(expected);
    expect(await bitsIn(models[2], steps[2])).toEqual(expected);
    for (const thing of [...steps, ...models]) thing.dispose();
  });

  it('never hold more gradients than one matrix and what is tied', async () => {
    const model = await tinyLlama({ tie_word_embeddings: true });
    const step = createStep({ model, objective: causalLM(), optimizer: plain, commit: 'eager' });
    const largest = 32 * 16;
    const tied = 32 * 16;
    expect(step.plan.peakBytes).toBe(4 * (largest + tied));
    expect(step.plan.entries.filter(({ held }) => held)).toEqual([
      {
        path: 'model.embed_tokens.weight',
        bytes: 4 * tied,
        held: true,
        reason: 'read by model.embed_tokens and lm_head: final after the first',
      },
    ]);
    expect(String(step.plan)).toMatch(
      /model\.layers\.0\.mlp\.up_proj\.weight +2048 +streamed +applied during the backward of model\.layers\.0/,
    );
    // The plan is a bound that the step checks itself against: a run passes only below it.
    await step.run(input(0, batchOf(long)));
    step.dispose();
    model.dispose();
  });

  it('keep everything back when the loss is not a number', async () => {
    const model = await tinyLlama();
    const step = createStep({ model, objective: spoiled({ value: NaN }), optimizer: trained, commit: 'eager' });
    const before = await bitsIn(model, step);
    const result = await step.run(input(0, batchOf(long)));
    expect(result).toMatchObject({ applied: false, gradNorm: NaN });
    expect(await bitsIn(model, step)).toEqual(before);
    expect(step.updates()).toBe(0);
    step.dispose();
    model.dispose();
  });

  it('refuse a global norm and accumulation', async () => {
    const model = await tinyLlama();
    const clipped = chain(clipByGlobalNorm(1), trained);
    expect(() => createStep({ model, objective: causalLM(), optimizer: clipped, commit: 'eager' })).toThrow(
      /needs all gradients of a step at once, which commit 'eager' does not give/,
    );
    const step = createStep({ model, objective: causalLM(), optimizer: trained, commit: 'eager' });
    await expect(step.run(input(0, batchOf(long), batchOf(short)))).rejects.toThrow(/a step of 2 micro-batches needs gradients summed/);
    step.dispose();
    model.dispose();
  });
});

describe('what a step owns', () => {
  const adam = chain(scaleByAdam(), scaleByLearningRate());
  /** An update that is somebody's own tensor. */
  const values: Transform = {
    name: 'values',
    init: () => ({}),
    update: (_, state, { parameter }) => ({ update: { kind: 'dense', value: parameter.read() }, state }),
  };

  it.each<[string, Transform]>([
    ['summed gradients', trained],
    ['gradients behind a bound and a penalty', chain(clipByGlobalNorm(0.1), addL2(0.01), trained)],
    ['a momentum that is also the update', chain(scaleByMomentum(), scaleByLearningRate())],
    ['a momentum from which Adam makes its moments', chain(scaleByMomentum(), adam)],
    ['a value from which Adam makes its moments', chain(values, adam)],
    ['a value as its own update', chain(values, scaleByLearningRate())],
    ['state in 8 bits', adamw({ learningRate: 0.01, state: { minSize: 0, blockSize: 64 } })],
  ])('is written over with the bits that it has beside: %s', async (_, optimizer) => {
    const config = { tie_word_embeddings: true };
    const models = [await tinyLlama(config), await tinyLlama(config)] as const;
    const steps = models.map((model, i) =>
      createStep({ model, objective: causalLM(), optimizer: i === 0 ? optimizer : beside(optimizer) }),
    );
    for (let attempt = 0; attempt < 3; attempt++) {
      for (const step of steps) await step.run(input(attempt, batchOf(long), batchOf(short)));
    }
    expect(await bitsIn(models[0], steps[0])).toEqual(await bitsIn(models[1], steps[1]));
    for (const thing of [...steps, ...models]) thing.dispose();
  });

  it('is not what somebody took a copy of', async () => {
    const model = await tinyLlama();
    const step = createStep({ model, objective: causalLM(), optimizer: trained });
    await step.run(input(0, batchOf(long)));
    const held = (): Tensor[] => [...deviceStates(step)].flatMap(([, state]) => Object.values(state) as Tensor[]);
    const copies = held().map((value) => value.clone());
    const before = await Promise.all(copies.map(bitsOf));
    // Asked for before the step, and come after it.
    const late = held().map(bitsOf);
    for (let attempt = 1; attempt < 3; attempt++) await step.run(input(attempt, batchOf(long)));
    expect(await Promise.all(copies.map(bitsOf))).toEqual(before);
    expect(await Promise.all(late)).toEqual(before);
    dispose(copies);
    for (const thing of [step, model]) thing.dispose();
  });
});

it('clips by the norm of all gradients', async () => {
  const [one, two] = [await tinyLlama(), await tinyLlama()];
  const free = createStep({ model: one, objective: causalLM(), optimizer: sgd({ learningRate: 1 }) });
  const clipped = createStep({ model: two, objective: causalLM(), optimizer: chain(clipByGlobalNorm(0.5), sgd({ learningRate: 1 })) });
  const before = await bitsIn(one);
  const batch = batchOf(long, short);
  const { gradNorm } = await free.run(input(0, batch));
  expect((await clipped.run(input(0, batch))).gradNorm).toBeCloseTo(gradNorm, 6);
  expect(gradNorm).toBeGreaterThan(0.5);
  for (const [i, parameter] of parametersOf(one).entries()) {
    const start = new Float32Array((before.get(parameter.path) as Int32Array).buffer);
    const [a, b] = [await parameter.read().data(), await parametersOf(two)[i]!.read().data()];
    a.forEach((value, j) => expect(b[j]! - start[j]!).toBeCloseTo(((value - start[j]!) * 0.5) / gradNorm, 6));
  }
  for (const thing of [free, clipped, one, two]) thing.dispose();
});

it('continues from a saved state as if it had never stopped', async () => {
  const [one, two] = [await tinyLlama(), await tinyLlama()];
  const make = (model: Model): Step => createStep({ model, objective: causalLM(), optimizer: trained });
  const [straight, first] = [make(one), make(two)];
  const batch = batchOf(long, short);
  for (let attempt = 0; attempt < 6; attempt++) await straight.run(input(attempt, batch));
  for (let attempt = 0; attempt < 3; attempt++) await first.run(input(attempt, batch));
  const copy = new Map([...first.state()].map(([path, state]) => [path, cloned(state)]));
  const updates = first.updates();
  first.dispose();
  const second = make(two);
  second.restore(copy, updates);
  for (let attempt = 3; attempt < 6; attempt++) await second.run(input(attempt, batch));
  expect(await bitsIn(two, second)).toEqual(await bitsIn(one, straight));
  expect(second.updates()).toBe(6);
  expect(() => second.restore(new Map([['nowhere', {}]]), 0)).toThrow(/does not fit/);
  for (const thing of [straight, second, one, two]) thing.dispose();
});

describe('host work of an optimizer', () => {
  const scaled = (log: string[]): Transform<{ factor: Tensor }> => ({
    name: 'scaled',
    init: () => ({ factor: scalar(0) }),
    due: (_, { attempt }) => attempt === 0,
    prepare: async (gradient, _, { parameter }) => {
      if (gradient.kind !== 'dense') throw new Error('dense expected');
      log.push(`${parameter.path} ${Number.isFinite((await gradient.value.data())[0])}`);
      return { factor: scalar(-1) };
    },
    update: (gradient, state) => ({
      update: { kind: 'dense', value: mul((gradient as { value: Tensor }).value, state.factor) },
      state,
    }),
  });

  it.each(['step', 'eager'] as const)('is awaited with the gradient before the update, commit %s', async (commit) => {
    const [one, two] = [await tinyLlama(), await tinyLlama()];
    const before = memory().numTensors;
    const log: string[] = [];
    const prepared = createStep({ model: one, objective: causalLM(), optimizer: scaled(log) as unknown as Transform, commit });
    const expected = createStep({ model: two, objective: causalLM(), optimizer: sgd({ learningRate: 1 }) });
    const batch = batchOf(long);
    for (let attempt = 0; attempt < 2; attempt++) {
      await prepared.run(input(attempt, batch));
      await expected.run({ ...input(attempt, batch), rate: 1 });
    }
    expect(log.length).toBe(parametersOf(one).length);
    expect(await bitsIn(one)).toEqual(await bitsIn(two));
    prepared.dispose();
    expected.dispose();
    disposeBatch(batches.pop()!);
    expect(memory().numTensors).toBe(before);
    one.dispose();
    two.dispose();
  });

  it.each(['step', 'eager'] as const)('is left out when the step is refused, commit %s', async (commit) => {
    const model = await tinyLlama();
    const log: string[] = [];
    const step = createStep({ model, objective: spoiled({ value: NaN }), optimizer: scaled(log) as unknown as Transform, commit });
    const before = await bitsIn(model, step);
    expect((await step.run(input(0, batchOf(long)))).applied).toBe(false);
    expect(log).toEqual([]);
    expect(await bitsIn(model, step)).toEqual(before);
    step.dispose();
    model.dispose();
  });
});

describe('an abort', () => {
  let model: Model;
  beforeEach(async () => {
    model = await tinyLlama();
    return () => model.dispose();
  });

  it.each([
    ['before the first piece', 0],
    ['among the stages of the first micro-batch', 5],
    ['in the second micro-batch', 10],
  ])('%s changes nothing and leaks nothing', async (_, pieces) => {
    const controller = new AbortController();
    let count = 0;
    const base = blockwiseBackprop();
    const step = createStep({
      model,
      objective: causalLM(),
      optimizer: trained,
      estimator: {
        ...base,
        estimate: (turn, sink) =>
          base.estimate({ ...turn, between: async () => (count++ === pieces && controller.abort(), turn.between?.()) }, sink),
      },
    });
    const window = [batchOf(long), batchOf(short)];
    const before = await bitsIn(model, step);
    const tensors = memory().numTensors;
    await expect(step.run({ ...input(0, ...window), signal: controller.signal })).rejects.toMatchObject({ name: 'AbortError' });
    expect(memory().numTensors).toBe(tensors);
    expect(await bitsIn(model, step)).toEqual(before);
    expect((await step.run(input(0, ...window))).applied).toBe(true);
    step.dispose();
  });

  it('after the first eager commit waits for the end of the step', async () => {
    const controller = new AbortController();
    let count = 0;
    const optimizer: Transform = { ...plain, update: (...args) => (count++ === 0 && controller.abort(), plain.update(...args)) };
    const step = createStep({ model, objective: causalLM(), optimizer, commit: 'eager' });
    expect((await step.run({ ...input(0, batchOf(long)), signal: controller.signal })).applied).toBe(true);
    expect(count).toBe(parametersOf(model).length);
    step.dispose();
  });
});

it('refuses a second run at once, frozen parameters and a model with nothing to train', async () => {
  const model = await tinyLlama();
  const step = createStep({ model, objective: causalLM(), optimizer: plain });
  const batch = batchOf(long);
  const running = step.run(input(0, batch));
  await expect(step.run(input(1, batch))).rejects.toThrow(/while the step is running/);
  expect(() => step.dispose()).toThrow(/while the step is running/);
  await running;
  step.dispose();
  await expect(step.run(input(2, batch))).rejects.toThrow(/while the step is disposed/);
  const all = parametersOf(model);
  all[0]!.trainable = false;
  expect(() => createStep({ model, objective: causalLM(), optimizer: plain, wrt: all })).toThrow(/is frozen/);
  expect(() => createStep({ model, objective: causalLM(), optimizer: plain, wrt: [] })).toThrow(/nothing to train/);
  model.dispose();
});

it.each(['step', 'eager'] as const)(
  'refuses a gradient of another shape than its parameter, and leaves nothing of it: %s',
  async (commit) => {
    const model = await tinyLlama();
    const base = blockwiseBackprop();
    const estimator: Estimator = {
      ...base,
      estimate: (turn, sink) =>
        base.estimate(turn, {
          ...sink,
          // One number for all entries, which every op of an update would take.
          push: (parameter, gradient) => {
            dispose(tensorsOf(gradient));
            sink.push(parameter, { kind: 'dense', value: keep(ones(parameter.shape.map(() => 1))) });
          },
        }),
    };
    const step = createStep({ model, objective: causalLM(), optimizer: trained, estimator, commit });
    const batch = batchOf(long);
    const [before, tensors] = [await bitsIn(model), memory().numTensors];
    await expect(step.run(input(0, batch))).rejects.toThrow(/the gradient of 'model.norm.weight' must be \[16\], got \[1\]/);
    expect(await bitsIn(model)).toEqual(before);
    expect(memory().numTensors).toBe(tensors);
    step.dispose();
    model.dispose();
  },
);

it('holds as many tensors after 1,000 steps as after the first', async () => {
  const model = await tinyLlama({
    num_hidden_layers: 1,
    hidden_size: 8,
    intermediate_size: 8,
    num_attention_heads: 2,
    num_key_value_heads: 1,
  });
  const step = createStep({ model, objective: causalLM(), optimizer: adamw({ learningRate: 1e-3 }), estimator: fullTapeBackprop() });
  const window = [batchOf({ ids: [1, 2, 3] })];
  await step.run(input(0, ...window));
  const { numTensors, numBytes } = memory();
  const seen = new Set<number>();
  for (let attempt = 1; attempt <= 1000; attempt++) {
    await step.run({ ...input(attempt, ...window), rate: 1e-3 });
    seen.add(memory().numTensors);
  }
  expect([...seen]).toEqual([numTensors]);
  expect(memory().numBytes).toBe(numBytes);
  step.dispose();
  model.dispose();
}, 120_000);
