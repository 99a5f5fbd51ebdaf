import { grads } from '@tensorflow/tfjs-core';
import { afterAll, beforeEach, describe, expect, it } from 'vitest';
import {
  add,
  crossEntropy,
  denseParameter,
  fill,
  gather,
  memory,
  mul,
  openMemoryLedger,
  plainView,
  sum,
  tensor,
  tidy,
  withGradient,
  type Parameter,
  type Scalar,
  type Tensor,
  type Tensor2D,
  type View,
} from '@niwaki/tensor';
import { createCall, type Call } from '@niwaki/weights';
import type { Carry, Model, Stage } from '@niwaki/nn';
import {
  blockwiseBackprop,
  causalLM,
  disposeBatch,
  fullTapeBackprop,
  languageBatch,
  type Estimator,
  type LanguageBatch,
  type Objective,
} from '@niwaki/engine';
import { tinyLlama } from '../../testing/src/index.ts';
import { apart, collect } from './support/collect.ts';

const rows = [{ ids: [3, 17, 5, 29, 8, 1, 22, 14] }, { ids: [9, 2, 30, 11, 6] }];
const batchOf = (): LanguageBatch => languageBatch(rows, { vocabularySize: 32 });
const parametersOf = (model: Model): Parameter[] => [...model.parameters().values()];

/** Rounding of f32 sums in another order. */
const tolerance = 1e-6;

/** Mean cross-entropy with full logits, straight through the stages. */
function lossOf(model: Model, batch: LanguageBatch, watched?: ReadonlyMap<Parameter, Tensor>, view: View = plainView): Scalar {
  const call = createCall({ batch, view, training: true, ...(watched === undefined ? {} : { watched }) });
  let carry: Carry = {};
  for (const stage of model.stages()) carry = { ...carry, ...stage.run(carry, call) };
  const scores = crossEntropy(gather(carry['logits'] as Tensor2D, batch.targetRows), batch.targets);
  return mul(sum(scores), 1 / batch.targets.size);
}

/** Gradients by tfjs's own tape, all stages at once. */
function reference(model: Model, batch: LanguageBatch): Map<string, Float32Array> {
  const parameters = parametersOf(model);
  return tidy(() => {
    const xs = parameters.map((parameter) => parameter.read());
    const found = grads((...args) => lossOf(model, batch, new Map(parameters.map((parameter, i) => [parameter, args[i]!]))))(xs);
    return new Map(parameters.map(({ path }, i) => [path, found[i]!.dataSync().slice() as Float32Array])) as never;
  }) as never;
}

describe.each([
  ['untied', {}],
  ['tied', { tie_word_embeddings: true }],
  ['sliding', { model_type: 'mistral', sliding_window: 3 }],
])('a tiny llama, %s', async (_, config) => {
  const model = await tinyLlama(config);
  const batch = batchOf();
  let before = 0;
  beforeEach(() => {
    before = memory().numTensors;
  });
  afterAll(() => {
    disposeBatch(batch);
    model.dispose();
  });

  it('has the gradients of the one big tape, blockwise and with kept tapes', async () => {
    const expected = reference(model, batch);
    const loss = tidy(() => lossOf(model, batch).dataSync()[0]!);
    for (const estimator of [blockwiseBackprop(), fullTapeBackprop()]) {
      const given = await collect(estimator, model, batch);
      expect(Math.abs(given.loss - loss)).toBeLessThan(tolerance);
      expect([...given.gradients.keys()].sort()).toEqual([...expected.keys()].sort());
      expect(apart(given.gradients, expected, tolerance)).toEqual([]);
    }
    expect(memory().numTensors).toBe(before);
  });

  it('gives the same bits whether stages are computed again, kept, or kept while they fit', async () => {
    const blockwise = await collect(blockwiseBackprop({ verifyRecompute: true }), model, batch);
    const some = memory().numBytes + 150_000;
    const estimators = [
      fullTapeBackprop(),
      blockwiseBackprop({ recompute: 'selective' }),
      blockwiseBackprop({ recompute: 'selective', verifyRecompute: true }),
      ...[15_000, 20_000, 25_000].map((keepBytes) => blockwiseBackprop({ keepBytes })),
      ...[1, some, 1e9].map((memoryBudget) => blockwiseBackprop({ memoryBudget })),
    ];
    for (const estimator of estimators) {
      const given = await collect(estimator, model, batch);
      expect(given.loss).toBe(blockwise.loss);
      expect(given.order).toEqual(blockwise.order);
      for (const [path, values] of given.gradients) expect(values).toEqual(blockwise.gradients.get(path));
    }
    expect(memory().numTensors).toBe(before);
  });

  it('has the slopes of finite differences in every parameter', async () => {
    const { gradients } = await collect(blockwiseBackprop(), model, batch);
    const off: string[] = [];
    for (const parameter of parametersOf(model)) {
      const gradient = gradients.get(parameter.path)!;
      const norm = Math.hypot(...gradient);
      const along = (step: number): number =>
        tidy(() => {
          const offset = mul(tensor(gradient, [...parameter.shape]), step / norm);
          const view: View = { of: (p) => (p === parameter ? { kind: 'offset', value: offset } : { kind: 'plain' }), touches: () => true };
          return lossOf(model, batch, undefined, view).dataSync()[0]!;
        });
      const central = (step: number): number => (along(step) - along(-step)) / (2 * step);
      // Extrapolated once, so that what is left is f32 rounding of the loss.
      const slope = (4 * central(0.01) - central(0.02)) / 3;
      if (Math.abs(slope - norm) >= 1e-3 * norm) off.push(`${parameter.path}: ${slope}, not ${norm}`);
    }
    expect(off).toEqual([]);
  });

  it('has the same gradients when the head runs in chunks', async () => {
    const whole = await collect(blockwiseBackprop(), model, batch);
    for (const parameter of parametersOf(model))
      parameter.trainable = parameter.path.includes('layers') || parameter.path === 'model.norm.weight';
    const chunked = await collect(blockwiseBackprop({ chunkBytes: 32 * 4 * 3 }), model, batch);
    for (const parameter of parametersOf(model)) parameter.trainable = true;
    expect(Math.abs(chunked.loss - whole.loss)).toBeLessThan(tolerance);
    expect(apart(chunked.gradients, whole.gradients, tolerance)).toEqual([]);
    expect(memory().numTensors).toBe(before);
  });
});

it('keeps more the larger the budget of memory is, and stays inside of it', async () => {
  const model = await tinyLlama({ num_hidden_layers: 6 });
  // Short rows: without kernels of their own, devices hold the scores of attention for a moment, which no record shows.
  const rows = Array.from({ length: 40 }, (_, row) => ({ ids: [3, 17, 5, 29, 8, row % 32] }));
  const batch = languageBatch(rows, { vocabularySize: 32 });
  const ledger = openMemoryLedger();
  const peakOf = async (estimator: Estimator): Promise<number> => {
    ledger.resetPeak();
    await collect(estimator, model, batch);
    return ledger.peak();
  };
  const [least, most] = [await peakOf(blockwiseBackprop()), await peakOf(fullTapeBackprop())];
  const budgets = [0.25, 0.5, 0.75].map((part) => Math.round(least + part * (most - least)));
  const peaks: number[] = [];
  for (const memoryBudget of budgets) peaks.push(await peakOf(blockwiseBackprop({ memoryBudget })));
  for (const [i, peak] of peaks.entries()) expect(peak).toBeLessThanOrEqual(budgets[i]!);
  expect(peaks[2]!).toBeGreaterThan(least + 0.3 * (most - least));
  expect(peaks[0]!).toBeLessThan(peaks[2]!);
  // Nothing fits: as if there were no budget.
  expect(await peakOf(blockwiseBackprop({ memoryBudget: 1 }))).toBe(least);
  expect(await peakOf(blockwiseBackprop({ memoryBudget: 1e9 }))).toBe(most);
  ledger.dispose();
  disposeBatch(batch);
  model.dispose();
});

it('thins records before it forgets one: the earliest first, and never the last', async () => {
  const layers = 4;
  const model = await tinyLlama({ num_hidden_layers: layers });
  const batch = batchOf();
  const ledger = openMemoryLedger();
  const ran: string[] = [];
  const counted: Model = {
    ...model,
    stages: () =>
      model.stages().map((stage) => ({
        ...stage,
        run: (carry: Carry, call: Call) => (call.unread && ran.push(stage.path), stage.run(carry, call)),
      })),
  };
  /** What is held when the forward of the blocks ends, and which stages were computed again. */
  const measured = async (estimator: Estimator): Promise<{ bytes: number; again: readonly string[] }> => {
    const held: number[] = [];
    await collect(estimator, counted, batch, { between: async () => void held.push(ledger.bytes()) });
    return { bytes: held[layers]!, again: ran.splice(0) };
  };
  const [full, thin, whole] = [
    await measured(blockwiseBackprop({ recompute: 'full' })),
    await measured(blockwiseBackprop({ recompute: 'selective' })),
    await measured(blockwiseBackprop({ recompute: 'none' })),
  ];
  expect(full.again.length).toBe(layers + 1);
  expect(thin.again).toEqual([]);
  expect(whole.again).toEqual([]);
  // Both norms of a block, and what enters its last product.
  const bytes = 4 * batch.tokenIds.size * (2 * 16 + 32);
  expect(whole.bytes - thin.bytes).toBe(layers * bytes);
  expect(thin.bytes).toBeGreaterThan(full.bytes);

  const thinned = async (keepBytes: number): Promise<{ thin: number; again: number }> => {
    const found = await measured(blockwiseBackprop({ keepBytes }));
    return { thin: (whole.bytes - found.bytes) / bytes, again: found.again.length };
  };
  let room = thin.bytes - full.bytes;
  expect((await thinned(room)).again).toBeGreaterThan(0);
  while ((await thinned(room)).again > 0) room += bytes / 2;
  // The first room in which nothing is computed again whole: all records but the last are thin.
  expect(await thinned(room)).toEqual({ thin: layers - 1, again: 0 });
  expect(await thinned(room + 2 * bytes)).toEqual({ thin: layers - 3, again: 0 });
  expect(await thinned(room + (layers - 1) * bytes)).toEqual({ thin: 0, again: 0 });
  ledger.dispose();
  disposeBatch(batch);
  model.dispose();
});

it('refuses more than one choice of what stays, and one that there is not', () => {
  expect(() => blockwiseBackprop({ recompute: 'none', memoryBudget: 1e9 })).toThrow(/recompute and memoryBudget each say what stays/);
  expect(() => blockwiseBackprop({ keepBytes: 0, memoryBudget: 1e9 })).toThrow(/keepBytes and memoryBudget/);
  expect(() => blockwiseBackprop({ recompute: 'some' as never })).toThrow(/full, selective, none; got 'some'/);
});

it('has the same gradient of a trained head in chunks', async () => {
  const model = await tinyLlama({ tie_word_embeddings: true });
  // 40 targets: chunks of a trained head hold at least 16 rows, the width of its matrix.
  const ids = (seed: number): number[] => Array.from({ length: 21 }, (_, i) => (i * seed + 5) % 32);
  const batch = languageBatch([{ ids: ids(7) }, { ids: ids(11) }], { vocabularySize: 32 });
  const whole = await collect(blockwiseBackprop(), model, batch);
  const chunked = await collect(blockwiseBackprop({ chunkBytes: 1 }), model, batch);
  expect(apart(chunked.gradients, whole.gradients, tolerance)).toEqual([]);
  disposeBatch(batch);
  model.dispose();
});

it('runs every row through the head without gathering when every row has a target', async () => {
  const model = await tinyLlama();
  const ids = [4, 8, 15, 16, 23];
  const every = languageBatch([{ ids, targets: [8, 15, 16, 23, 1] }], { vocabularySize: 32 });
  const padded = languageBatch([{ ids, targets: [8, 15, 16, 23, 1] }], { vocabularySize: 32, padTo: 7 });
  expect(causalLM().rows(every).everyRow).toBe(true);
  expect(causalLM().rows(padded).everyRow).toBe(false);
  const frozenHead = parametersOf(model).filter(({ path }) => path !== 'lm_head.weight');
  const a = await collect(blockwiseBackprop({ chunkBytes: 32 * 4 * 2 }), model, every, { wrt: frozenHead });
  const b = await collect(blockwiseBackprop(), model, padded);
  expect(Math.abs(a.loss - b.loss)).toBeLessThan(tolerance);
  expect(apart(a.gradients, b.gradients, tolerance)).toEqual([]);
  for (const batch of [every, padded]) disposeBatch(batch);
  model.dispose();
});

it('stops below the lowest trained stage and asks nothing of what is frozen', async () => {
  const model = await tinyLlama();
  const batch = batchOf();
  const all = await collect(blockwiseBackprop(), model, batch);
  const wrt = parametersOf(model).filter(({ path }) => path === 'model.layers.1.self_attn.v_proj.weight');
  const ran: string[] = [];
  const counted: Model = {
    ...model,
    stages: () =>
      model.stages().map((stage) => ({ ...stage, run: (carry: Carry, call: never) => (ran.push(stage.path), stage.run(carry, call)) })),
  };
  const one = await collect(blockwiseBackprop(), counted, batch, { wrt });
  expect(ran).toEqual(['model.embed_tokens', 'model.layers.0', 'model.layers.1', 'lm_head', 'model.layers.1']);
  expect(one.order).toEqual(['model.layers.1.self_attn.v_proj.weight']);
  expect(one.gradients.get(one.order[0]!)).toEqual(all.gradients.get(one.order[0]!));
  disposeBatch(batch);
  model.dispose();
});

it('goes around stages that nothing trained leads into: these run once, and what only they gave is let go', async () => {
  const base = await tinyLlama();
  const gain = denseParameter('gain', fill([16], 0.5), { role: 'magnitude', trainable: true });
  const ran: string[] = [];
  /** A stream p = gain · h beside the blocks, added to h before the head. */
  const model: Model = {
    ...base,
    stages: () => {
      const [embed, ...blocks] = base.stages();
      const head = blocks.pop()!;
      const beside: Stage = {
        path: 'beside',
        reads: ['h'],
        writes: ['p'],
        sites: [],
        parameters: () => [gain],
        run: ({ h }, call) => ({ p: mul(h!, call.value(gain)) }),
      };
      const last: Stage = { ...head, reads: ['h', 'p'], run: ({ h, p }, call) => head.run({ h: add(h!, p!) }, call) };
      return [embed!, beside, ...blocks, last].map((stage) => ({
        ...stage,
        run: (carry: Carry, call: Call) => (ran.push(stage.path), stage.run(carry, call)),
      }));
    },
  };
  const batch = batchOf();
  const ledger = openMemoryLedger();
  const held: number[] = [];
  const between = async (): Promise<void> => void held.push(ledger.bytes());
  const blockwise = await collect(blockwiseBackprop({ verifyRecompute: true }), model, batch, { wrt: [gain], between });
  const stages = ['model.embed_tokens', 'beside', 'model.layers.0', 'model.layers.1', 'lm_head'];
  // Once more for the check, once for the gradient.
  expect(ran.splice(0)).toEqual([...stages, 'beside', 'beside']);
  // The second block's hidden state takes the place of the first one's.
  expect(held[3]).toBe(held[2]);
  const kept = await collect(fullTapeBackprop(), model, batch, { wrt: [gain] });
  expect(ran).toEqual(stages);
  expect(kept).toEqual(blockwise);
  expect(Math.max(...blockwise.gradients.get('gain')!.map(Math.abs))).toBeGreaterThan(1e-3);
  ledger.dispose();
  disposeBatch(batch);
  gain.dispose();
  base.dispose();
});

it('hands gradients over from the head down, a tied one last', async () => {
  const model = await tinyLlama({ tie_word_embeddings: true });
  const batch = batchOf();
  const { order } = await collect(blockwiseBackprop(), model, batch);
  expect(order[0]).toBe('model.norm.weight');
  expect(order.at(-1)).toBe('model.embed_tokens.weight');
  expect(order.findIndex((path) => path.includes('layers.1'))).toBeLessThan(order.findIndex((path) => path.includes('layers.0')));
  disposeBatch(batch);
  model.dispose();
});

it('takes an objective that is not linear in its rows', async () => {
  const model = await tinyLlama();
  const batch = batchOf();
  // Squared mean: the slope of each row is 2 · mean / n.
  const squared: Objective = {
    ...causalLM(),
    weight: () => 1,
    reduce: (scores) => {
      const m = mul(sum(scores), 1 / scores.size);
      return mul(m, m) as Scalar;
    },
  };
  const before = memory().numTensors;
  const plain = await collect(blockwiseBackprop(), model, batch);
  const wrt = parametersOf(model).filter(({ path }) => path !== 'lm_head.weight');
  const given = await collect(blockwiseBackprop({ chunkBytes: 32 * 4 * 3 }), model, batch, { objective: squared, wrt });
  expect(given.loss).toBeCloseTo(plain.loss ** 2, 4);
  const expected = new Map([...plain.gradients].map(([path, values]) => [path, values.map((value) => 2 * plain.loss * value)]));
  expect(apart(given.gradients, expected, 2 * tolerance)).toEqual([]);
  expect(memory().numTensors).toBe(before);
  disposeBatch(batch);
  model.dispose();
});

it('finds a stage that computes something else the second time', async () => {
  const model = await tinyLlama();
  const batch = batchOf();
  let runs = 0;
  const drifting: Model = {
    ...model,
    stages: () =>
      model
        .stages()
        .map((stage) =>
          stage.path !== 'model.layers.0'
            ? stage
            : { ...stage, run: (carry: Carry, call: never) => ({ h: add(stage.run(carry, call)['h']!, runs++ * 1e-3) }) },
        ),
  };
  const before = memory().numTensors;
  await expect(collect(blockwiseBackprop({ verifyRecompute: true }), drifting, batch)).rejects.toMatchObject({
    name: 'NumericError',
    details: { stage: 'model.layers.0', stream: 'h' },
  });
  expect(memory().numTensors).toBe(before);
  disposeBatch(batch);
  model.dispose();
});

it('finds an op that makes something else again than what it gave', async () => {
  const model = await tinyLlama();
  const batch = batchOf();
  const half = (x: Tensor2D): Tensor2D =>
    withGradient(
      [x],
      (save) => {
        save([x]);
        return mul(x, 0.5);
      },
      (dy) => [mul(dy, 0.5)],
      { remake: ([saved]) => mul(saved!, 0.501) },
    ) as Tensor2D;
  const halving: Model = {
    ...model,
    stages: () =>
      model
        .stages()
        .map((stage) =>
          stage.path !== 'model.layers.0'
            ? stage
            : { ...stage, run: (carry, call) => stage.run({ ...carry, h: half(carry['h'] as Tensor2D) }, call) },
        ),
  };
  const before = memory().numTensors;
  const selective = collect(blockwiseBackprop({ recompute: 'selective', verifyRecompute: true }), halving, batch);
  await expect(selective).rejects.toMatchObject({ name: 'NumericError', details: { stage: 'model.layers.0' } });
  await expect(collect(blockwiseBackprop({ verifyRecompute: true }), halving, batch)).resolves.toBeDefined();
  expect(memory().numTensors).toBe(before);
  disposeBatch(batch);
  model.dispose();
});

it.each(['selective', 'none'] as const)('leaves nothing behind when it is stopped between two pieces: recompute %s', async (recompute) => {
  const model = await tinyLlama();
  const batch = batchOf();
  for (const stopAt of [0, 2, 3, 4, 5, 6]) {
    const frozen = parametersOf(model).filter(({ path }) => path.startsWith('model.layers.0'));
    const before = memory().numTensors;
    let pieces = 0;
    const between = async (): Promise<void> => {
      if (pieces++ === stopAt) throw new Error('stop');
    };
    const pushed: Tensor[] = [];
    const turn = {
      model,
      objective: causalLM(),
      batch,
      wrt: new Set(frozen),
      view: plainView,
      at: { attempt: 0, phaseStep: 0, micro: 0, pass: 0 },
      draw: {
        at: () => {
          throw new Error('no draws here');
        },
      },
      scale: 1,
      between,
    };
    const estimate = blockwiseBackprop({ recompute }).estimate(turn, {
      push: (_, gradient) => void (gradient.kind === 'dense' && pushed.push(gradient.value)),
    });
    await expect(estimate).rejects.toThrow('stop');
    for (const value of pushed) value.dispose();
    expect(memory().numTensors).toBe(before);
  }
  disposeBatch(batch);
  model.dispose();
});
