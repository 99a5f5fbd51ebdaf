import { AbortError, add, cast, ConfigError, DataError, memory, mul, NumericError, sum, type Tensor, type Tensor1D } from '@niwaki/tensor';
import { BusyModelError, causalLM, disposeBatch, fullTapeBackprop, languageBatch, type Objective } from '@niwaki/engine';
import { lora } from '@niwaki/lowrank';
import { adapt } from '@niwaki/peft';
import type { Model } from '@niwaki/nn';
import { adamw, constant, cosine, sgd } from '@niwaki/optim';
import { quantize, rtn } from '@niwaki/quant';
import { tinyLlama } from '@niwaki/testing';
import { describe, expect, it } from 'vitest';
import {
  CheckpointError,
  evaluateBatch,
  exactBatches,
  languageData,
  memoryFolder,
  packSamples,
  rowOf,
  train,
  type LanguageData,
  type Sample,
  type StepEvent,
  type TrainEvent,
  type TrainOptions,
} from '../src/index.ts';

const vocabularySize = 32;
const sample = (ids: readonly number[]): Sample => ({ kind: 'text', ids: Int32Array.from(ids), learn: new Uint8Array(ids.length).fill(1) });
/** Seven documents of different lengths. */
const seven = [4, 7, 5, 6, 3, 8, 5].map((length, i) => Array.from({ length }, (_, t) => (5 * i + 3 * t * (i + 1) + 1) % vocabularySize));
const dataOf = (documents: readonly (readonly number[])[] = seven): LanguageData =>
  languageData(packSamples(documents.map(sample), { context: 8, pack: false }).rows, { vocabularySize });

async function adapted(): Promise<Model> {
  const model = await tinyLlama({}, { trainable: false });
  await adapt(model, lora({ rank: 2, alpha: 4, dropout: 0.2 }), { at: 'all-linear', seed: 5 });
  return model;
}

/** The run of the case: 7 samples, batch 2, accumulate 2, 3 epochs, cosine with warm-up, dropout on. */
const theCase = (more: Partial<TrainOptions> = {}): TrainOptions => ({
  data: dataOf(),
  optimizer: adamw({ learningRate: 1e-2 }),
  schedule: cosine({ learningRate: 1e-2, warmup: 2 }),
  epochs: 3,
  batchSize: 2,
  accumulate: 2,
  clip: 1,
  seed: 11,
  ...more,
});

async function collect(run: AsyncIterable<TrainEvent>): Promise<TrainEvent[]> {
  const events: TrainEvent[] = [];
  for await (const event of run) events.push(event);
  return events;
}
const stepsOf = (events: readonly TrainEvent[]): StepEvent[] => events.filter((event): event is StepEvent => event.kind === 'step');
/** What must not depend on an interruption. */
const essence = ({ step, epoch, loss, gradNorm, learningRate, tokens, targets, applied }: StepEvent): object => ({
  step,
  epoch,
  loss,
  gradNorm,
  learningRate,
  tokens,
  targets,
  applied,
});
const trained = (model: Model): Map<string, number[]> =>
  new Map(
    [...model.parameters().values()]
      .filter(({ trainable }) => trainable)
      .map((p) => [p.path, [...new Uint32Array(p.read().dataSync().slice().buffer)]]),
  );

describe('the loop', () => {
  it('lowers the loss, counts tokens, and says who holds which bytes', async () => {
    const model = await adapted();
    const data = dataOf();
    const events = await collect(train(model, { ...theCase({ data }), epochs: 20, schedule: cosine({ learningRate: 3e-2 }) }));
    const steps = stepsOf(events);
    expect(steps).toHaveLength(40);
    expect(steps.at(-1)!.loss).toBeLessThan(steps[0]!.loss - 0.3);
    // 38 tokens an epoch, of which the first of each of the 7 documents is not predicted.
    expect(data.tokens).toBe(38);
    expect(data.targets).toBe(31);
    expect(steps[1]!.tokens).toBe(38);
    expect(steps[0]!.targets + steps[1]!.targets).toBe(31);
    expect(steps.at(-1)!.etaSeconds).toBe(0);
    const { memory: held } = steps[0]!;
    const adapter = [...model.parameters().values()].filter((p) => p.trainable).reduce((sum, p) => sum + p.bytes(), 0);
    // The tiny model has 5,712 parameters of 4 bytes.
    expect(held).toMatchObject({ base: 4 * 5712, adapter, trained: 0 });
    // Measured: what was alive at most is what rests plus what the step needed, the held gradients at least.
    expect(held.peak).toBe(held.base + held.adapter + held.optimizer + held.activations);
    expect(held.activations).toBeGreaterThan(held.gradients);
    expect(held.peak).toBeGreaterThan(held.total);
    expect(held.optimizer).toBeGreaterThanOrEqual(2 * adapter);
    expect(held.total).toBeGreaterThanOrEqual(held.base + held.adapter + held.optimizer);
    model.dispose();
  });

  it('spends a budget of memory on keeping what it would compute again, and gives the same bits', async () => {
    const runs: StepEvent[][] = [];
    for (const more of [{}, { recompute: 'selective' }, { memoryBudget: 1e9 }, { recompute: 'none' }] as const) {
      const model = await adapted();
      runs.push(stepsOf(await collect(train(model, theCase(more)))));
      model.dispose();
    }
    const [least, selective, most, none] = runs as [StepEvent[], StepEvent[], StepEvent[], StepEvent[]];
    for (const run of [selective, most, none]) expect(run.map(essence)).toEqual(least.map(essence));
    expect(selective[0]!.memory.peak).toBeGreaterThan(least[0]!.memory.peak);
    expect(most[0]!.memory.peak).toBeGreaterThan(selective[0]!.memory.peak);
    expect(none[0]!.memory.peak).toBe(most[0]!.memory.peak);
    const model = await adapted();
    const both = (more: Partial<TrainOptions>): Promise<unknown> => collect(train(model, theCase(more)));
    await expect(both({ memoryBudget: 1e9, estimator: fullTapeBackprop() })).rejects.toThrow(/memoryBudget is for blockwise backprop/);
    await expect(both({ recompute: 'none', estimator: fullTapeBackprop() })).rejects.toThrow(/recompute is for blockwise backprop/);
    await expect(both({ recompute: 'none', memoryBudget: 1e9 })).rejects.toThrow(ConfigError);
    await expect(collect(train(model, theCase({ memoryBudget: 0.5 })))).rejects.toThrow(/memoryBudget must be a whole number/);
    model.dispose();
  });

  it('visits every sample once an epoch, in an order of its own each time', async () => {
    const plan = dataOf().plan({ batchSize: 2, accumulate: 2, seed: 1 });
    const epochs: string[][] = [];
    for (const epoch of [0, 1]) {
      const seen: string[] = [];
      for (let step = 0; step < plan.stepsPerEpoch; step++) {
        const { batches } = await plan.window(epoch, step);
        for (const batch of batches) {
          const [ids, to] = [batch['tokenIds'] as Tensor, batch['keysTo'] as Tensor];
          const [rows, time] = ids.shape as [number, number];
          const [flat, ends] = [ids.dataSync(), to.dataSync()];
          for (let r = 0; r < rows; r++)
            seen.push(
              flat
                .slice(r * time, (r + 1) * time)
                .filter((_, t) => ends[r * time + t]! > 0)
                .join(),
            );
          disposeBatch(batch);
        }
      }
      epochs.push(seen);
    }
    expect(plan.stepsPerEpoch).toBe(2);
    expect([...epochs[0]!].sort()).toEqual(seven.map((ids) => ids.join()).sort());
    expect([...epochs[1]!].sort()).toEqual([...epochs[0]!].sort());
    expect(epochs[1]).not.toEqual(epochs[0]);
  });

  it('divides the losses of a window by all its tokens: [4] and [1, 1, 1] give 1.75, not 2.5', async () => {
    // The id of a target is its loss; the logits take part with weight 0, so that there is a gradient to follow.
    const objective: Objective = {
      ...causalLM(),
      score: ({ logits }, target) => add(mul(sum(logits!, -1), 0), cast(target, 'float32')) as Tensor1D,
    };
    const model = await tinyLlama();
    const data = languageData(
      [sample([9, 4]), sample([9, 1, 1, 1])].map((each) => rowOf([each])),
      { vocabularySize, shuffle: false },
    );
    const [step] = stepsOf(await collect(train(model, { data, objective, optimizer: sgd({ learningRate: 0.1 }), accumulate: 2 })));
    expect(step).toMatchObject({ loss: 1.75, targets: 4, tokens: 6, steps: 1 });
    model.dispose();
  });

  it('gives a window of micro-batches the loss and the gradient of one large batch', async () => {
    const results: StepEvent[] = [];
    for (const [batchSize, accumulate] of [
      [7, 1],
      [2, 4],
      [1, 7],
    ] as const) {
      const model = await tinyLlama();
      const options = { data: dataOf(), optimizer: sgd({ learningRate: 0.1 }), batchSize, accumulate };
      results.push(stepsOf(await collect(train(model, options)))[0]!);
      model.dispose();
    }
    // Only the order of f32 sums differs.
    for (const { loss, gradNorm } of results) {
      expect(loss).toBeCloseTo(results[0]!.loss, 5);
      expect(Math.abs(gradNorm / results[0]!.gradNorm - 1)).toBeLessThan(1e-6);
    }
  });

  it('applies each gradient at once where asked to, to the same weights', async () => {
    const results: Map<string, number[]>[] = [];
    for (const commit of ['step', 'eager'] as const) {
      const model = await adapted();
      const steps = stepsOf(await collect(train(model, { ...theCase({ commit }), accumulate: 1, clip: 0 })));
      expect(steps.every(({ gradNorm }) => Number.isNaN(gradNorm) === (commit === 'eager'))).toBe(true);
      results.push(trained(model));
      model.dispose();
    }
    expect(results[1]).toEqual(results[0]);
  });

  it('leaves no tensor behind, at its end and when left early', async () => {
    const model = await adapted();
    await collect(train(model, { ...theCase(), epochs: 1 }));
    const before = memory().numTensors;
    await collect(train(model, { ...theCase(), epochs: 1 }));
    for await (const event of train(model, theCase())) if (event.kind === 'step') break;
    expect(memory().numTensors).toBe(before);
    model.dispose();
  });

  it('gives the same bits for the same seed, and others for another', async () => {
    const runs: unknown[] = [];
    for (const seed of [11, 11, 12]) {
      const model = await adapted();
      const events = await collect(train(model, theCase({ seed })));
      runs.push({ events: stepsOf(events).map(essence), values: trained(model) });
      model.dispose();
    }
    expect(runs[1]).toEqual(runs[0]);
    expect(runs[2]).not.toEqual(runs[0]);
  });
});

describe('two runs on one model', () => {
  it('are refused while the first lasts, whose values are as if nobody had asked', async () => {
    const alone = await adapted();
    await collect(train(alone, theCase()));
    const model = await adapted();
    for await (const event of train(model, theCase())) {
      if (event.kind !== 'step') continue;
      const second = collect(train(model, theCase()));
      await expect(second).rejects.toThrow(BusyModelError);
      await expect(second).rejects.toThrow(/^a training run cannot begin: a training run is at work on this model\n  help: /);
      await expect(quantize(model, rtn({ groupSize: 8 }))).rejects.toThrow(/^rtn cannot begin: a training run/);
    }
    expect(trained(model)).toEqual(trained(alone));
    for (const each of [alone, model]) each.dispose();
  });

  it.each<[string, (model: Model) => Promise<unknown>]>([
    ['its end', (model) => collect(train(model, theCase({ epochs: 1 })))],
    [
      'a break',
      async (model) => {
        for await (const event of train(model, theCase())) if (event.kind === 'step') break;
      },
    ],
    ['an abort', (model) => expect(collect(train(model, theCase({ signal: AbortSignal.abort() })))).rejects.toThrow(AbortError)],
    ['bad options', (model) => expect(collect(train(model, theCase({ steps: 0 })))).rejects.toThrow(ConfigError)],
    [
      'a failing evaluation',
      (model) =>
        expect(collect(train(model, theCase({ evaluate: { every: 1, run: () => Promise.reject(new Error('no text')) } })))).rejects.toThrow(
          'no text',
        ),
    ],
  ])('follow one another: %s lets go', async (_, first) => {
    const model = await adapted();
    await first(model);
    expect(stepsOf(await collect(train(model, theCase({ epochs: 1 }))))).toHaveLength(2);
    await quantize(model, rtn({ groupSize: 8 }));
    model.dispose();
  });
});

describe('resuming', () => {
  it.each([1, 2, 3, 4, 5])('after a stop at step %i is as if there had been none: rates, order, losses, weights', async (stopAt) => {
    const whole = await adapted();
    const expected = stepsOf(await collect(train(whole, theCase())));
    expect(expected).toHaveLength(6);

    const folder = memoryFolder();
    const controller = new AbortController();
    const first = await adapted();
    const before: TrainEvent[] = [];
    const interrupted = (async () => {
      for await (const event of train(first, theCase({ checkpoint: { folder }, signal: controller.signal }))) {
        before.push(event);
        if (event.kind === 'step' && event.step === stopAt) controller.abort();
      }
    })();
    await expect(interrupted).rejects.toThrow(AbortError);
    expect(before.at(-1)).toMatchObject({ kind: 'checkpoint', step: stopAt });

    const second = await adapted();
    const after = await collect(train(second, theCase({ checkpoint: { folder, resume: true } })));
    expect(after[0]).toEqual({ kind: 'resume', step: stopAt });
    expect([...stepsOf(before), ...stepsOf(after)].map(essence)).toEqual(expected.map(essence));
    expect(trained(second)).toEqual(trained(whole));
    for (const model of [whole, first, second]) model.dispose();
  });

  it('from a run that is finished has nothing left to do', async () => {
    const folder = memoryFolder();
    const model = await adapted();
    await collect(train(model, theCase({ checkpoint: { folder } })));
    expect(await collect(train(model, theCase({ checkpoint: { folder, resume: true } })))).toEqual([{ kind: 'resume', step: 6 }]);
    model.dispose();
  });

  it.each([
    ['other data', { data: dataOf(seven.slice(1)) }, /data was/],
    ['another seed', { seed: 12 }, /seed was 11, is 12/],
    ['another batch size', { batchSize: 1 }, /batchSize was 2, is 1/],
    ['another schedule', { schedule: cosine({ learningRate: 1e-2, warmup: 3 }) }, /schedule\.warmup was 2, is 3/],
    ['another length, which its rates go by', { epochs: 4 }, /steps was 6, is 8\n  help: The rates of steps that were taken/],
    [
      'another optimizer option',
      { optimizer: adamw({ learningRate: 1e-2, beta1: 0.8 }) },
      /: optimizer\.parts\[1\]\.beta1 was 0\.9, is 0\.8\n/,
    ],
    [
      'a group of its own',
      { optimizer: adamw({ learningRate: 1e-2, groups: [{ roles: ['adapterB'], rateScale: 16 }] }) },
      /parts\[3\]\.rateScale was 1, is \{"groups":\[\{"roles":\["adapterB"\],"rateScale":16\}\],"otherwise":1\}/,
    ],
    ['state in 8 bits', { optimizer: adamw({ learningRate: 1e-2, state: '8bit' }) }, /parts\[1\]\.state was absent, is \{"blockSize":256/],
    ['another estimator', { estimator: fullTapeBackprop() }, /estimator was \{"kind":"blockwise".*[^]*help: Give the estimator/],
  ] as const)('with %s is refused, and the model is as it was', async (_what, change, message) => {
    const folder = memoryFolder();
    const model = await adapted();
    for await (const event of train(model, theCase({ checkpoint: { folder, every: 4 } }))) if (event.kind === 'checkpoint') break;
    const before = trained(model);
    const resumed = collect(train(model, theCase({ ...change, checkpoint: { folder, resume: true } })));
    await expect(resumed).rejects.toThrow(CheckpointError);
    await expect(resumed).rejects.toThrow(message);
    expect(trained(model)).toEqual(before);
    model.dispose();
  });

  it('with another adapter is refused', async () => {
    const folder = memoryFolder();
    const model = await adapted();
    for await (const event of train(model, theCase({ checkpoint: { folder, every: 1 } }))) if (event.kind === 'checkpoint') break;
    const other = await tinyLlama({}, { trainable: false });
    await adapt(other, lora({ rank: 3 }), { at: 'all-linear' });
    await expect(collect(train(other, theCase({ checkpoint: { folder, resume: true } })))).rejects.toThrow(
      /another run: adapters\.default\.rank was 2, is 3;/,
    );
    for (const each of [model, other]) each.dispose();
  });

  it('may go on for more steps than it was begun with, where its rates do not go by their number, as if it had had them all', async () => {
    const more = { schedule: constant({ learningRate: 1e-2, warmup: 2 }) };
    const whole = await adapted();
    await collect(train(whole, theCase({ ...more, epochs: 4 })));
    const folder = memoryFolder();
    const model = await adapted();
    await collect(train(model, theCase({ ...more, epochs: 2, checkpoint: { folder } })));
    const fewer = collect(train(model, theCase({ ...more, epochs: 1, checkpoint: { folder, resume: true } })));
    await expect(fewer).rejects.toThrow(/: steps was 4, is 2\n/);
    const after = await collect(train(model, theCase({ ...more, epochs: 4, checkpoint: { folder, resume: true } })));
    expect(after[0]).toEqual({ kind: 'resume', step: 4 });
    expect(trained(model)).toEqual(trained(whole));
    for (const each of [whole, model]) each.dispose();
  });

  it('needs the same number of steps where something that takes part goes by it', async () => {
    const options = (epochs: number, resume: boolean): TrainOptions =>
      theCase({
        schedule: constant({ learningRate: 1e-2 }),
        participants: [{ name: 'halfway', byLength: true }],
        epochs,
        checkpoint: { folder, resume },
      });
    const folder = memoryFolder();
    const model = await adapted();
    await collect(train(model, options(1, false)));
    await expect(collect(train(model, options(2, true)))).rejects.toThrow(/: steps was 2, is 4\n/);
    model.dispose();
  });

  it('with an optimizer of another state is refused, and the model is as it was', async () => {
    const folder = memoryFolder();
    const plain = theCase({ optimizer: sgd({ learningRate: 0.1 }), checkpoint: { folder, every: 1 } });
    const model = await adapted();
    for await (const event of train(model, plain)) if (event.kind === 'checkpoint') break;
    const other = await adapted();
    const before = trained(other);
    const tensors = memory().numTensors;
    const withMomentum = theCase({ optimizer: sgd({ learningRate: 0.1, momentum: 0.9 }), checkpoint: { folder, resume: true } });
    await expect(collect(train(other, withMomentum))).rejects.toThrow(/optimizer/);
    expect(trained(other)).toEqual(before);
    expect(memory().numTensors).toBe(tensors);
    for (const each of [model, other]) each.dispose();
  });

  it('works for a whole model, trained without an adapter', async () => {
    const options = (more: Partial<TrainOptions> = {}): TrainOptions =>
      theCase({ optimizer: sgd({ learningRate: 0.1, momentum: 0.9 }), ...more });
    const whole = await tinyLlama();
    const expected = stepsOf(await collect(train(whole, options())));
    const folder = memoryFolder();
    const first = await tinyLlama();
    for await (const event of train(first, options({ checkpoint: { folder, every: 3 } }))) if (event.kind === 'checkpoint') break;
    const second = await tinyLlama({}, { seed: 99 });
    const after = stepsOf(await collect(train(second, options({ checkpoint: { folder, resume: true } }))));
    expect(after.map(essence)).toEqual(expected.slice(3).map(essence));
    expect(trained(second)).toEqual(trained(whole));
    for (const model of [whole, first, second]) model.dispose();
  });
});

describe('a loss that is not finite', () => {
  /** Next-token prediction that is spoiled while `spoiled()` says so. */
  const spoilt = (spoiled: () => boolean): Objective => {
    const base = causalLM();
    return {
      ...base,
      score: (outputs, target) => (spoiled() ? (mul(base.score(outputs, target), NaN) as Tensor1D) : base.score(outputs, target)),
    };
  };

  it('is refused and counted, and the run goes on as if the step had only cost its time', async () => {
    const model = await adapted();
    let at = 0;
    const values: unknown[] = [];
    const events: StepEvent[] = [];
    for await (const event of train(model, theCase({ objective: spoilt(() => at === 2) }))) {
      if (event.kind !== 'step') continue;
      at = event.step;
      values.push(trained(model));
      events.push(event);
    }
    expect(events.map(({ applied }) => applied)).toEqual([true, true, false, true, true, true]);
    expect(events[2]!.loss).toBeNaN();
    expect(values[2]).toEqual(values[1]);
    expect(values[3]).not.toEqual(values[2]);
    const rates = cosine({ learningRate: 1e-2, warmup: 2 });
    expect(events.map(({ learningRate }) => learningRate)).toEqual(events.map((_, step) => rates.rate(step, 6)));
    model.dispose();
  });

  it('in too many steps in a row ends the run with what to do, also across a resume', async () => {
    const folder = memoryFolder();
    const model = await adapted();
    const before = trained(model);
    const objective = spoilt(() => true);
    const events: TrainEvent[] = [];
    const failing = async (more: Partial<TrainOptions>): Promise<void> => {
      for await (const event of train(model, theCase({ objective, maxRefused: 3, ...more }))) events.push(event);
    };
    const controller = new AbortController();
    const first = (async () => {
      for await (const event of train(model, theCase({ objective, maxRefused: 3, checkpoint: { folder }, signal: controller.signal })))
        if (event.kind === 'step' && event.step === 2) controller.abort();
    })();
    await expect(first).rejects.toThrow(AbortError);
    const second = failing({ checkpoint: { folder, resume: true } });
    await expect(second).rejects.toThrow(NumericError);
    await expect(second).rejects.toThrow(/NaN in 3 steps in a row, up to step 3.*\n.*Lower learningRate/s);
    expect(stepsOf(events)).toHaveLength(1);
    expect(trained(model)).toEqual(before);
    model.dispose();
  });
});

describe('an interruption inside a step', () => {
  it('leaves the step out: the checkpoint is that of the step before', async () => {
    const folder = memoryFolder();
    const controller = new AbortController();
    const model = await adapted();
    const base = causalLM();
    let done = 0;
    const objective: Objective = {
      ...base,
      score: (outputs, target) => {
        if (done === 1) controller.abort();
        return base.score(outputs, target);
      },
    };
    const events: TrainEvent[] = [];
    let after: unknown;
    const run = (async () => {
      for await (const event of train(model, theCase({ objective, checkpoint: { folder }, signal: controller.signal }))) {
        events.push(event);
        if (event.kind === 'step') [done, after] = [event.step, trained(model)];
      }
    })();
    await expect(run).rejects.toThrow(AbortError);
    expect(events.map(({ kind, step }) => `${kind} ${step}`)).toEqual(['step 1', 'checkpoint 1']);
    expect(trained(model)).toEqual(after);
    model.dispose();
  });
});

describe('evaluation during a run', () => {
  it('runs every so many steps and at the end, and changes nothing of the training', async () => {
    const alone = await adapted();
    const expected = stepsOf(await collect(train(alone, theCase())));
    const model = await adapted();
    const rows = [sample([1, 2, 3, 4]), sample([5, 6, 7])].map((each) => rowOf([each]));
    const run = async (): Promise<Record<string, number>> => {
      const batch = languageBatch(rows, { vocabularySize });
      const losses = await evaluateBatch(model, batch, causalLM());
      disposeBatch(batch);
      return { loss: losses.reduce((total, loss) => total + loss, 0) / losses.length };
    };
    const events = await collect(train(model, theCase({ evaluate: { every: 4, run } })));
    expect(events.filter(({ kind }) => kind === 'evaluation').map(({ step }) => step)).toEqual([4, 6]);
    expect(stepsOf(events).map(essence)).toEqual(expected.map(essence));
    for (const each of [alone, model]) each.dispose();
  });
});

describe('exact batches', () => {
  it('are taken in their order, one step each', async () => {
    const model = await tinyLlama();
    const batches = [
      [
        [1, 2, 3],
        [4, 5],
      ],
      [[6, 7, 8, 9]],
    ];
    const data = exactBatches(batches, { vocabularySize });
    const steps = stepsOf(await collect(train(model, { data, optimizer: sgd({ learningRate: 0.1 }) })));
    expect(steps.map(({ tokens, targets }) => [tokens, targets])).toEqual([
      [5, 3],
      [9, 3],
    ]);
    model.dispose();
  });

  it.each([
    [{}, /Expected/i],
    [[], /./],
    [[[]], /at \[0\]/],
    [[[[1, -1]]], /at \[0\.0\.1\]/],
    [[[[1, 1.5]]], /at \[0\.0\.1\]/],
  ])('that are not token ids are refused with their place: %j', (json, message) => {
    expect(() => exactBatches(json, { vocabularySize })).toThrow(DataError);
    expect(() => exactBatches(json, { vocabularySize })).toThrow(message);
  });

  it('with an id outside the vocabulary fail before anything is trained', async () => {
    const model = await tinyLlama();
    const data = exactBatches([[[1, 32]]], { vocabularySize });
    await expect(collect(train(model, { data, optimizer: sgd({ learningRate: 0.1 }) }))).rejects.toThrow(/token id 32/);
    model.dispose();
  });
});

describe('bad options', () => {
  it.each([
    [{ batchSize: 0 }, /batchSize must be a whole number of at least 1, got 0/],
    [{ batchSize: 1.5 }, /batchSize/],
    [{ accumulate: -1 }, /accumulate/],
    [{ clip: -1 }, /clip/],
    [{ clip: NaN }, /clip/],
    [{ seed: 0.5 }, /seed/],
    [{ steps: 0 }, /steps/],
    [{ steps: 3, epochs: 3 }, /steps \(3\) or epochs \(3\)/],
    [{ maxRefused: 0 }, /maxRefused/],
    [{ evaluate: { every: 0, run: async () => ({}) } }, /evaluate\.every/],
    [{ checkpoint: { folder: memoryFolder(), every: 0 } }, /checkpoint\.every/],
    [{ checkpoint: { folder: memoryFolder(), keep: 0 } }, /checkpoint\.keep/],
    [{ commit: 'eager', accumulate: 2, clip: 0 }, /a step of 2 micro-batches needs .* which commit 'eager' does not give/],
    [{ commit: 'eager', accumulate: 1, clip: 1 }, /'clip → .*' needs all gradients .* which commit 'eager' does not give/],
    [{ optimizer: { ...sgd({ learningRate: 1 }), learningRate: undefined as never }, schedule: undefined as never }, /no learning rate/],
  ] satisfies [object, RegExp][])('%o are refused before the first step', async (options, message) => {
    const model = await tinyLlama();
    const { epochs: _epochs, ...rest } = theCase();
    const run = collect(train(model, { ...rest, ...(options as Partial<TrainOptions>) }));
    await expect(run).rejects.toThrow(ConfigError);
    await expect(run).rejects.toThrow(message);
    model.dispose();
  });
});
