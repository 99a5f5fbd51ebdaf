import { describe, expect, it } from 'vitest';
import {
  ConfigError,
  createDraw,
  memory,
  mul,
  scalar,
  StateError,
  tensor1d,
  tidy,
  zeros,
  type Parameter,
  type Tensor,
} from '@niwaki/tensor';
import { filesFolder, memoryFolderSink, openSafetensors } from '../../hub/src/index.ts';
import { encodeGgufBlocks, flatPlaces, ggufBlock, packPlaces, placedParameters, rowsOf } from '@niwaki/weights';
import type { AdapterSet, Model } from '@niwaki/nn';
import { adamw, agedAdamw, beginEntries, lion, scaleByAgedAdam, sgd, sm3, type State, type Transform } from '@niwaki/optim';
import { blockwiseBackprop, causalLM, createStep, type Objective, type Step } from '@niwaki/engine';
import { galore } from '../../lowrank/src/index.ts';
import { adapt, mergeAdapter, saveAdapter } from '@niwaki/peft';
import { loadAdapter } from './verbs.ts';
import { exactBatches, memoryFolder, train } from '../../train/src/index.ts';
import { bytesOf, cloned, deviceStates, distance, logits, sizeOf } from '../../testing/src/contract-model.ts';
import { trial } from '../../testing/src/transform-trial.ts';
import { tinyThings } from '../../testing/src/tiny-things.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { exchange, largestProducts, leastOf } from '../src/drop-and-grow.ts';
import {
  adapterFiles,
  reselectionRate,
  spiel,
  spielParticipant,
  taskVectorOf,
  type SpielAdapter,
  type SpielOptions,
} from '../src/index.ts';

const config = { num_hidden_layers: 1, hidden_size: 16, intermediate_size: 24 };
const { things, batchOf } = tinyThings();

const rows = [
  [3, 1, 4, 1, 5],
  [2, 7, 1, 8, 2],
  [1, 6, 1, 8, 0],
  [5, 7, 7, 2, 1],
];

interface Ground {
  readonly model: Model;
  readonly set: AdapterSet;
  readonly step: Step;
  /** Multiplies the loss. */
  readonly factor: { value: number };
  run(attempts: number, options?: { step?: Step; accumulate?: number; rate?: number }): Promise<boolean[]>;
}

const steps = 40;
const fast = { reselectionSteps: 4, accumulationSteps: 2 } as const;

async function ground(
  options: SpielOptions,
  {
    optimizer = agedAdamw({ learningRate: 1 }),
    at = ['q_proj', 'down_proj'],
    seed = 3,
  }: { optimizer?: Transform; at?: string[]; seed?: number } = {},
): Promise<Ground> {
  const model = await tinyLlama(config);
  const set = await adapt(model, spiel({ ...fast, ...options }), { at, seed });
  const factor = { value: 1 };
  const step = makeStep(model, set, optimizer, factor);
  things.push(model);
  let attempt = 0;
  return {
    model,
    set,
    step,
    factor,
    run: async (attempts, { step: by = step, accumulate = 1, rate = 0.02 } = {}) => {
      const applied: boolean[] = [];
      for (let i = 0; i < attempts; i++, attempt++) {
        const size = rows.length / accumulate;
        const window = Array.from({ length: accumulate }, (_, b) => batchOf(rows.slice(b * size, (b + 1) * size)));
        const result = await by.run({ batches: window, attempt, rate, progress: attempt / steps, steps, draw: createDraw(5, attempt) });
        applied.push(result.applied);
      }
      return applied;
    },
  };
}

function makeStep(model: Model, set: AdapterSet, optimizer: Transform, factor = { value: 1 }): Step {
  const base = causalLM();
  const objective: Objective = {
    ...base,
    score: (outputs, target) => mul(base.score(outputs, target), factor.value),
  };
  const step = createStep({ model, objective, optimizer, participants: [spielParticipant(set)] });
  things.push(step);
  return step;
}

const adaptersOf = (set: AdapterSet): SpielAdapter[] => [...set.sites.values()] as SpielAdapter[];
const host = (value: Tensor): number[] => [...value.dataSync()];

interface Entries {
  readonly places: number[];
  readonly values: number[];
  readonly state: Record<string, number[]>;
}

/** What every adapter holds, slot by slot. */
const entriesOf = ({ set, step }: { set: AdapterSet; step: Step }): Entries[] =>
  adaptersOf(set).map(({ index, values, shape }) => ({
    places: [...flatPlaces(index.read().dataSync(), shape)],
    values: host(values.read()),
    state: Object.fromEntries(
      Object.entries(deviceStates(step).get(values.path) ?? {}).flatMap(([name, value]) =>
        typeof value === 'number' ? [] : [[name, host(value)]],
      ),
    ),
  }));

describe('what is dropped and grown', () => {
  it('is the least, in order, of equal ones the first', () => {
    expect([...leastOf(Float32Array.of(3, 0, 2, 0, 5, 2), 4)]).toEqual([1, 3, 2, 5]);
    expect([...leastOf(Float32Array.of(1, 2), 0)]).toEqual([]);
    expect([...leastOf(Float32Array.of(2, 1), 2)]).toEqual([1, 0]);
  });

  it('leaves an entry alone that is in both, and surplus slots too', () => {
    // Slot 0 changed least and is the best candidate: it stays, and slot 1 gets nothing.
    const both = exchange(
      Int32Array.of(7, 9),
      Float32Array.of(0.1, 0.5),
      { places: Int32Array.of(7, 9), scores: Float32Array.of(5, 4) },
      1,
    );
    expect([[...both.slots], [...both.grown]]).toEqual([[], []]);
    // Two of three go, one free candidate: the least goes, the other keeps its place.
    const surplus = exchange(
      Int32Array.of(1, 2, 3),
      Float32Array.of(0.3, 0.1, 0.2),
      { places: Int32Array.of(1, 8), scores: Float32Array.of(9, 1) },
      2,
    );
    expect([[...surplus.slots], [...surplus.grown]]).toEqual([[1], [1]]);
  });

  it('is the candidate with the largest score that is free', () => {
    const { slots, grown } = exchange(
      Int32Array.of(0, 5, 6),
      Float32Array.of(1, 0, 2),
      { places: Int32Array.of(0, 3, 4), scores: Float32Array.of(9, 2, 8) },
      1,
    );
    expect([[...slots], [...grown]]).toEqual([[1], [2]]);
  });

  it('by products is what sorting all of them gives', () => {
    const draw = (seed: number): number => Math.abs(Math.sin(seed * 12.9898) * 43758.5453) % 1;
    for (let round = 0; round < 20; round++) {
      const [m, n] = [1 + (round % 5), 2 + (round % 7)];
      const value = (i: number): number => Math.floor(4 * draw(i + 100 * round));
      const row = Float32Array.from({ length: m }, (_, i) => value(i));
      const column = Float32Array.from({ length: n }, (_, j) => value(50 + j));
      const taken = new Set(Array.from({ length: m * n }, (_, e) => e).filter((e) => draw(e + 7 * round) < 0.3));
      const all = Array.from({ length: m * n }, (_, e) => e)
        .map((e) => [e, row[Math.floor(e / n)]! * column[e % n]!] as const)
        .filter(([e, product]) => product > 0 && !taken.has(e))
        .sort(([a, p], [b, q]) => q - p || a - b)
        .map(([e]) => e);
      for (const count of [0, 1, 3, m * n]) expect([...largestProducts(row, column, taken, count)]).toEqual(all.slice(0, count));
    }
  });

  it('falls off over the run: all at first, 0.179 at step 105 of 1000, half of it for a cosine in the middle', () => {
    const linear = { policy: 'linear', initialRate: 0.2, accumulationSteps: 5 } as const;
    expect(reselectionRate(linear, 5, 1000)).toBe(1);
    expect(reselectionRate(linear, 105, 1000)).toBeCloseTo(0.179, 12);
    expect(reselectionRate(linear, 1001, 1000)).toBe(0);
    const cosine = { ...linear, policy: 'cosine' } as const;
    expect(reselectionRate(cosine, 500, 1000)).toBeCloseTo(0.1, 12);
    expect(reselectionRate(cosine, 5, 1000)).toBeLessThan(0.2);
  });
});

describe('the optimizers', () => {
  it('seed moments that the correction turns into the means: a factor of 0.40951 and 0.00499000999 for 5 steps', () => {
    const seen = tidy(() => {
      const transform = scaleByAgedAdam();
      const parameter = { shape: [3], path: 'p' } as unknown as Parameter;
      const entries = {
        fresh: tensor1d([0, 1, 1]),
        seen: { mean: tensor1d([9, 1, -2]), meanSquare: tensor1d([9, 1, 4]), steps: 5 },
        updates: 7,
      };
      const old = { momentum: tensor1d([0.3, 1, 1]), variance: tensor1d([0.7, 1, 1]), age: tensor1d([8, 8, 8]) };
      const { momentum, variance, age } = beginEntries(transform as unknown as Transform, old, entries, parameter) as Record<
        string,
        Tensor
      >;
      return [momentum!, variance!, age!].map(host);
    });
    expect(seen[0]![0]).toBe(Math.fround(0.3));
    expect(seen[1]![0]).toBe(Math.fround(0.7));
    expect(seen[2]).toEqual([8, 5, 5]);
    expect(seen[0]![1]).toBeCloseTo(0.40951, 7);
    expect(seen[1]![1]).toBeCloseTo(0.00499000999, 9);
    expect(seen[0]![2]! / (1 - 0.9 ** 5)).toBeCloseTo(-2, 6);
    expect(seen[1]![2]! / (1 - 0.999 ** 5)).toBeCloseTo(4, 5);
  });

  it('aged Adam steps as its formula, entry by entry, and counts ages', async () => {
    const run = trial(agedAdamw({ learningRate: 1, weightDecay: 0.5, eps: 1e-6 }), [1, -2]);
    let [m, v, value] = [0, 0, 1];
    for (let age = 1; age <= 3; age++) {
      const g = 0.1 * age;
      const values = await run.step([g, 0], { rate: 0.01 });
      m = 0.9 * m + 0.1 * g;
      v = 0.999 * v + 0.001 * g * g;
      value -= (0.01 * (m / (1 - 0.9 ** age))) / ((Math.sqrt(v) + 1e-6) / Math.sqrt(1 - 0.999 ** age));
      value -= 0.01 * 0.5 * value;
      expect(values[0]).toBeCloseTo(value, 5);
      expect(values[1]).toBeCloseTo(-2 * 0.995 ** age, 5);
    }
    expect(host(run.state()['aged-adam.age'] as Tensor)).toEqual([4, 4]);
    run.dispose();
  });

  it('SM3 over entries of a matrix: 2 x 3, places 0 and 4', async () => {
    const index = tensor1d(packPlaces([0, 4], [2, 3]), 'int32');
    const parts = placedParameters({ values: 'v', index: 'i' }, [2, 3], { values: zeros([2]), index });
    const transform = sm3({ learningRate: 1 });
    let state: State = transform.init(parts.values);
    const free = (): void => (Object.values(state) as Tensor[]).forEach((tensor) => tensor.dispose());
    things.push(parts.values, parts.index, { dispose: free });
    const update = (gradient: number[]): number[] => {
      const made = tidy(() => {
        const context = { parameter: parts.values, attempt: 0, updates: scalar(1), rate: 1, progress: 0, draw: createDraw(0, 0) };
        const { update: step, state: next, how } = transform.update({ kind: 'dense', value: tensor1d(gradient) }, state, context);
        expect(how).toEqual({ scale: -1 });
        return { ...next, step: (step as { value: Tensor }).value } as Record<string, Tensor>;
      });
      const { step, ...next } = made;
      free();
      state = next;
      const found = host(step!);
      step!.dispose();
      return found;
    };
    const sums = (): number[][] => [host(state['sm3.row'] as Tensor), host(state['sm3.column'] as Tensor)];
    for (const value of update([3, 4])) expect(value).toBeCloseTo(1, 6);
    expect(sums()).toEqual([
      [9, 16],
      [9, 16, 0],
    ]);
    const second = update([1, 2]);
    expect(second[0]).toBeCloseTo(0.31623, 5);
    expect(second[1]).toBeCloseTo(0.44721, 5);
    const [row, column] = sums() as [number[], number[]];
    expect([row, column]).toEqual([
      [10, 20],
      [10, 20, 0],
    ]);
    expect([...largestProducts(Float32Array.from(row), Float32Array.from(column), new Set([0, 4]), 6)]).toEqual([1, 3]);
  });
});

describe('the entries', () => {
  it('get their part of the budget, of all parameters of the model, each place once', async () => {
    const { model, set } = await ground({ density: 0.05 });
    const own = new Set(adaptersOf(set).flatMap(({ parameters }) => Object.values(parameters)));
    const all = [...model.parameters().values()]
      .filter((parameter) => !own.has(parameter))
      .reduce((sum, { shape }) => sum + sizeOf(shape), 0);
    const budget = Math.floor(0.05 * all);
    const sizes = adaptersOf(set).map(({ shape: [out, width] }) => out * width);
    const total = sizes.reduce((sum, size) => sum + size, 0);
    expect(adaptersOf(set).map(({ values }) => values.shape[0])).toEqual(sizes.map((size) => Math.floor((budget * size) / total)));
    for (const { index, shape } of adaptersOf(set)) {
      const places = flatPlaces(index.read().dataSync(), shape);
      expect(new Set(places).size).toBe(places.length);
      expect(Math.max(...places)).toBeLessThan(shape[0] * shape[1]);
    }
  });

  it.each(['AG', 'MA'] as const)('come and go (%s): unique places, zeros and a young age at new ones', async (algorithm) => {
    const optimizer = algorithm === 'AG' ? agedAdamw({ learningRate: 1 }) : sm3({ learningRate: 1, momentum: 0.5 });
    const given = await ground({ algorithm, density: 0.05 }, { optimizer });
    let exchanged = 0;
    for (let t = 1; t <= 10; t++) {
      const before = entriesOf(given);
      await given.run(1);
      const after = entriesOf(given);
      const rate = t % 4 === 2 ? reselectionRate({ policy: 'linear', initialRate: 0.2, accumulationSteps: 2 }, t, steps) : 0;
      for (const [i, { places, values, state }] of after.entries()) {
        expect(new Set(places).size).toBe(places.length);
        const moved = places.flatMap((place, slot) => (place === before[i]!.places[slot] ? [] : [slot]));
        expect(moved.length).toBeLessThanOrEqual(Math.floor(places.length * rate));
        exchanged += moved.length;
        for (const slot of moved) {
          expect(values[slot]).toBe(0);
          expect(before[i]!.places).not.toContain(places[slot]);
        }
        const age = state['aged-adam.age'] ?? [];
        expect(age).toEqual(age.map((_, slot) => (moved.includes(slot) ? 2 : before[i]!.state['aged-adam.age']![slot]! + 1)));
        const direction = state['sm3.direction'] ?? [];
        expect(moved.map((slot) => direction[slot] ?? 0)).toEqual(moved.map(() => 0));
      }
    }
    expect(exchanged).toBeGreaterThan(20);
  });

  it('that stay keep value, moments and age of the step, bit for bit', async () => {
    const [choosing, fixed] = [
      await ground({ density: 0.05 }),
      await ground({ density: 0.05, reselectionSteps: 30, accumulationSteps: 20 }),
    ];
    await choosing.run(2);
    await fixed.run(2);
    const [a, b] = [entriesOf(choosing), entriesOf(fixed)];
    let stayed = 0;
    for (const [i, { places, values, state }] of a.entries()) {
      for (const [slot, place] of places.entries()) {
        if (place !== b[i]!.places[slot]) continue;
        stayed++;
        expect(values[slot]).toBe(b[i]!.values[slot]);
        for (const name of Object.keys(state)) expect(state[name]![slot]).toBe(b[i]!.state[name]![slot]);
      }
    }
    expect(stayed).toBeGreaterThan(5);
  });

  it('that grow are those with the largest summed gradients, and begin with the means of these', async () => {
    const { model, set, step, run } = await ground({ numTunable: 12 }, { at: ['model.layers.0.mlp.down_proj'] });
    const [adapter] = adaptersOf(set) as [SpielAdapter];
    const sums: Float32Array[] = [];
    const squares: Float32Array[] = [];
    let candidates: number[] = [];
    // A second watcher of the same gradients.
    const watcher = createStep({
      model,
      objective: causalLM(),
      optimizer: agedAdamw({ learningRate: 1 }),
      participants: [
        {
          name: 'watcher',
          wants: () => new Set([adapter.delta()]),
          gradient: (_, gradient) => {
            const values = gradient().dataSync() as Float32Array;
            sums.push(values.slice());
            squares.push(values.map((value) => value * value));
          },
        },
        spielParticipant(set),
      ],
    });
    things.push(watcher);
    await run(2, { step: watcher });
    const order = Array.from(sums[0]!.keys()).sort((a, b) => Math.abs(sums[0]![b]!) - Math.abs(sums[0]![a]!) || a - b);
    candidates = order.slice(0, 12);
    const { places, state } = entriesOf({ set, step: watcher })[0]!;
    // The first choice is free: all candidates are entries now, or the others were in the way.
    expect([...places].sort((a, b) => a - b)).toEqual(candidates.sort((a, b) => a - b));
    const initial = new Set(entriesOf({ set, step })[0]!.places);
    expect(initial.size).toBe(12);
    for (const [slot, place] of places.entries()) {
      if (state['aged-adam.age']![slot] !== 2) continue;
      const mean = (sums[0]![place]! + sums[1]![place]!) / 2;
      const square = (squares[0]![place]! + squares[1]![place]!) / 2;
      expect(state['aged-adam.momentum']![slot]! / (1 - 0.9 ** 2)).toBeCloseTo(mean, 5);
      expect(state['aged-adam.variance']![slot]! / (1 - 0.999 ** 2)).toBeCloseTo(square, 5);
    }
  });

  it('are the same for the same seed, and others for another', async () => {
    const places = async (seed: number): Promise<number[][]> => {
      const given = await ground({ density: 0.05 }, { seed });
      await given.run(7);
      return entriesOf(given).map(({ places: own }) => own);
    };
    const first = await places(1);
    expect(await places(1)).toEqual(first);
    expect(await places(2)).not.toEqual(first);
  });
});

describe('a run', () => {
  const places = (given: Ground): number[][] => entriesOf(given).map(({ places: own }) => own);

  it.each([
    ['AG', 'agedAdamw', () => agedAdamw({ learningRate: 1 })],
    ['AG', 'agedAdamw in 8 bits', () => agedAdamw({ learningRate: 1, state: { minSize: 4, blockSize: 8 } })],
    ['AG', 'adamw', () => adamw({ learningRate: 1 })],
    ['AG', 'lion', () => lion({ learningRate: 1 })],
    ['AG', 'sgd with momentum', () => sgd({ learningRate: 1, momentum: 0.9 })],
    ['MA', 'sm3', () => sm3({ learningRate: 1 })],
  ] as const)('of %s with %s goes on from any step as if it had not stopped', async (algorithm, name, make) => {
    const options = { algorithm, density: 0.05 };
    const whole = await ground(options, { optimizer: make() });
    await whole.run(7);
    // In the first accumulation and in a later one; right after a choice.
    for (const stop of name === 'agedAdamw' ? [1, 5, 6] : [5]) {
      const part = await ground(options, { optimizer: make() });
      await part.run(stop);
      const next = makeStep(part.model, part.set, make());
      next.restore(new Map([...part.step.state()].map(([path, state]) => [path, cloned(state)])), part.step.updates());
      await part.run(7 - stop, { step: next });
      expect(entriesOf({ set: part.set, step: next })).toEqual(entriesOf(whole));
    }
  });

  it('committed stage by stage is the same', async () => {
    const [atomic, eager] = [await ground({ density: 0.05 }), await ground({ density: 0.05 })];
    await atomic.run(3);
    const step = createStep({
      model: eager.model,
      objective: causalLM(),
      optimizer: agedAdamw({ learningRate: 1 }),
      participants: [spielParticipant(eager.set)],
      commit: 'eager',
    });
    things.push(step);
    await eager.run(3, { step });
    expect(entriesOf({ set: eager.set, step })).toEqual(entriesOf(atomic));
  });

  it('that refuses a step has no trace of it, in the middle of an accumulation too', async () => {
    const [clean, dirty] = [await ground({ density: 0.05 }), await ground({ density: 0.05 })];
    await clean.run(1);
    expect(await dirty.run(1)).toEqual([true]);
    const before = new Map([...deviceStates(dirty.step)].map(([path, state]) => [path, cloned(state)]));
    dirty.factor.value = Number.NaN;
    expect(await dirty.run(1)).toEqual([false]);
    dirty.factor.value = 1;
    for (const [path, state] of deviceStates(dirty.step))
      for (const [name, value] of Object.entries(state))
        expect(typeof value === 'number' ? value : host(value)).toEqual(
          typeof before.get(path)![name] === 'number' ? before.get(path)![name] : host(before.get(path)![name] as Tensor),
        );
    things.push({ dispose: () => before.forEach((state) => Object.values(state).forEach((v) => typeof v !== 'number' && v.dispose())) });
    await clean.run(6);
    await dirty.run(6);
    expect(places(dirty)).toEqual(places(clean));
  });

  it('that refuses its very first step chooses its candidates in the next', async () => {
    const given = await ground({ density: 0.05 });
    given.factor.value = Number.NaN;
    expect(await given.run(1)).toEqual([false]);
    expect([...given.step.state().keys()].filter((path) => path.startsWith('#'))).toEqual([]);
    given.factor.value = 1;
    expect(await given.run(3)).toEqual([true, true, true]);
  });

  it('of micro-batches trains as one large batch, and counts the micro-batches it saw', async () => {
    const [one, four] = [await ground({ density: 0.05 }), await ground({ density: 0.05 })];
    await one.run(1);
    await four.run(1, { accumulate: 4 });
    const [a, b] = [entriesOf(one), entriesOf(four)];
    for (const [i, { values }] of a.entries())
      expect(distance(Float32Array.from(values), Float32Array.from(b[i]!.values))).toBeLessThan(1e-5);
    const samples = (given: Ground): unknown[] =>
      [...deviceStates(given.step)].flatMap(([path, state]) => (path.startsWith('#') ? [state['samples']] : []));
    expect(samples(one)).toEqual([1, 1]);
    expect(samples(four)).toEqual([4, 4]);
    // Sums of micro-batches of equal size are four times the step's gradient.
    const sums = (given: Ground): Map<string, number> => {
      const found = new Map<string, number>();
      for (const [path, state] of deviceStates(given.step)) {
        if (!path.startsWith('#')) continue;
        const [at, sum] = [host(state['places'] as Tensor), host(state['sum'] as Tensor)];
        sum.forEach((value, j) => found.set(`${path} ${at[2 * j]} ${at[2 * j + 1]}`, value / (state['samples'] as number)));
      }
      return found;
    };
    const [wholes, means] = [sums(one), sums(four)];
    const shared = [...wholes.keys()].filter((key) => means.has(key));
    expect(shared.length).toBeGreaterThan(10);
    for (const key of shared) expect(means.get(key)).toBeCloseTo(wholes.get(key)!, 5);
    await four.run(1, { accumulate: 4 });
    expect(entriesOf(four)[0]!.state['aged-adam.age']!.some((age) => age === 2)).toBe(true);
  });

  it('holds state for its entries alone: 12 bytes each, and 16 while it looks for candidates; 4 a row and a column with SM3', async () => {
    const given = await ground({ density: 0.05 });
    const entries = adaptersOf(given.set).reduce((sum, { values }) => sum + values.shape[0]!, 0);
    expect(adaptersOf(given.set).reduce((sum, { values, index }) => sum + values.bytes() + index.bytes(), 0)).toBe(8 * entries);
    const seenBytes = (): number =>
      [...deviceStates(given.step)]
        .filter(([path]) => path.startsWith('#'))
        .flatMap(([, state]) => Object.values(state))
        .reduce<number>((sum, value) => sum + (typeof value === 'number' ? 0 : 4 * value.size), 0);
    const held: number[] = [];
    for (let t = 0; t < 6; t++) {
      await given.run(1);
      expect(given.step.stateBytes()).toBe(12 * entries);
      held.push(seenBytes() / entries);
    }
    expect(held).toEqual([16, 0, 0, 0, 16, 0]);
    const other = await ground({ density: 0.05, algorithm: 'MA' }, { optimizer: sm3({ learningRate: 1 }) });
    await other.run(1);
    expect(other.step.stateBytes()).toBe(adaptersOf(other.set).reduce((sum, { shape: [out, width] }) => sum + 4 * (out + width), 0));
  });

  it('of twice the layers holds as much, at the same number of entries', async () => {
    const held = async (layers: number): Promise<number[]> => {
      const model = await tinyLlama({ ...config, num_hidden_layers: layers });
      things.push(model);
      const set = await adapt(model, spiel({ ...fast, numTunable: 192 }), { at: ['q_proj', 'down_proj'] });
      const step = makeStep(model, set, agedAdamw({ learningRate: 1 }));
      await step.run({ batches: [batchOf(rows)], attempt: 0, rate: 0.01, progress: 0, steps, draw: createDraw(0, 0) });
      return [step.stateBytes(), adaptersOf(set).reduce((sum, { values, index }) => sum + values.bytes() + index.bytes(), 0)];
    };
    const [one, two] = [await held(1), await held(2)];
    // 192 entries divide evenly between the matrices of one layer and of two, but for rounding down.
    for (const [i, bytes] of one.entries()) expect(Math.abs(two[i]! - bytes)).toBeLessThanOrEqual(12 * 4);
  });

  it('learns more than one whose entries stay where chance put them', async () => {
    const losses = async (options: SpielOptions): Promise<number> => {
      const given = await ground({ density: 0.02, ...options }, { at: ['all-linear'] });
      await given.run(24);
      const batch = batchOf(rows);
      const result = await given.step.run({ batches: [batch], attempt: 24, rate: 0, progress: 0.6, steps, draw: createDraw(5, 24) });
      return result.loss;
    };
    const [chosen, fixed] = [await losses({}), await losses({ reselectionSteps: 40, accumulationSteps: 39 })];
    expect(chosen).toBeLessThan(fixed - 0.05);
  });
});

describe('spiel and its optimizer', () => {
  const refusal = async (options: SpielOptions, optimizer: Transform, given: { steps?: number } = { steps }): Promise<string> => {
    const ground_ = await ground(options, { optimizer });
    const run = ground_.step.run({ batches: [batchOf(rows)], attempt: 0, rate: 0.01, progress: 0, ...given, draw: createDraw(0, 0) });
    return run.then(
      () => 'ran',
      (error: Error) => `${error.name}: ${error.message}`,
    );
  };

  it('says before the first step which optimizer cannot have entries that come and go, or has no sums to grow by', async () => {
    expect(await refusal({}, agedAdamw({ learningRate: 1 }))).toBe('ran');
    expect(await refusal({}, sm3({ learningRate: 1 }))).toBe('ran');
    expect(await refusal({}, galore({ learningRate: 1, rank: 2 }))).toMatch(/ConfigError: 'galore' does not say what its state .* becomes/);
    expect(await refusal({ algorithm: 'MA' }, agedAdamw({ learningRate: 1 }))).toMatch(
      /ConfigError: .*rows and columns, which 'agedAdamw'/,
    );
    expect(await refusal({}, agedAdamw({ learningRate: 1 }), {})).toMatch(/ConfigError: .*how long/);
  });

  it('needs gradients to look at, and says so where there are none', async () => {
    const model = await tinyLlama(config);
    things.push(model);
    const set = await adapt(model, spiel(fast), { at: 'q_proj' });
    const own = spielParticipant(set);
    const step = createStep({
      model,
      objective: causalLM(),
      optimizer: agedAdamw({ learningRate: 1 }),
      estimator: blockwiseBackprop(),
      participants: [{ ...own, wants: (moment) => (own.wants!(moment), new Set()) }],
    });
    things.push(step);
    const run = (attempt: number): Promise<unknown> =>
      step.run({ batches: [batchOf(rows)], attempt, rate: 0.01, progress: 0, steps, draw: createDraw(0, attempt) });
    await run(0);
    await expect(run(1)).rejects.toThrow(StateError);
  });

  it('refuses options out of range, naming field and range', () => {
    const wrong: [SpielOptions, RegExp][] = [
      [{ density: 0 }, /density must be in \(0, 1\], got 0/],
      [{ density: 1.5 }, /density/],
      [{ numTunable: 0 }, /numTunable/],
      [{ numTunable: 2.5 }, /numTunable/],
      [{ density: 0.1, numTunable: 3 }, /not both/],
      [{ algorithm: 'ag' as never }, /algorithm/],
      [{ accumulationSteps: 0 }, /accumulationSteps/],
      [{ accumulationSteps: 5, reselectionSteps: 5 }, /reselectionSteps must be a whole number above accumulationSteps \(5\)/],
      [{ initialRate: 0 }, /initialRate/],
      [{ policy: 'exponential' as never }, /policy/],
    ];
    for (const [options, message] of wrong) {
      expect(() => spiel(options)).toThrow(message);
      expect(() => spiel(options)).toThrow(ConfigError);
    }
  });

  it('is the recipe of the paper where nothing is said', () => {
    expect(JSON.parse(JSON.stringify(spiel()))).toEqual({
      kind: 'spiel',
      options: { algorithm: 'AG', reselectionSteps: 20, accumulationSteps: 5, initialRate: 0.2, policy: 'linear', density: 0.01 },
    });
    expect(agedAdamw({ learningRate: 1 }).options).toEqual(
      agedAdamw({ learningRate: 1, beta1: 0.9, beta2: 0.999, eps: 1e-6, weightDecay: 0 }).options,
    );
    expect(sm3({ learningRate: 1 }).options).toEqual(sm3({ learningRate: 1, momentum: 0, eps: 1e-8, weightDecay: 0 }).options);
  });

  it('does not go on from a run with other entries', async () => {
    const given = await ground({ density: 0.05 });
    await given.run(1);
    const saved = new Map([...deviceStates(given.step)].map(([path, state]) => [path, cloned(state)]));
    things.push({ dispose: () => saved.forEach((state) => Object.values(state).forEach((v) => typeof v !== 'number' && v.dispose())) });
    const seen = new Map([...saved].filter(([path]) => path.startsWith('#')));
    // The same adapter with fewer entries, and one at another place.
    for (const [options, at] of [
      [{ density: 0.04 }, ['q_proj', 'down_proj']],
      [{ density: 0.05 }, ['k_proj', 'down_proj']],
    ] as const) {
      const other = await ground(options, { at: [...at] });
      expect(() => other.step.restore(seen, 1)).toThrow(StateError);
    }
  });

  it('refuses targets that have too few entries, get none, are no linear maps or are not there', async () => {
    const model = await tinyLlama(config);
    things.push(model);
    await expect(adapt(model, spiel({ numTunable: 1e6 }), { at: 'q_proj' })).rejects.toThrow(
      /1000000 entries shall train, the 1 targets have 256/,
    );
    await expect(adapt(model, spiel({ numTunable: 2 }), { at: ['q_proj', 'k_proj', 'down_proj'] })).rejects.toThrow(/none is left for/);
    await expect(adapt(model, spiel(), { at: 'embed_tokens' })).rejects.toThrow(/linear maps, '.*embed_tokens' is a embedding/);
    await expect(adapt(model, spiel(), { at: 'lm_head' })).rejects.toThrow(/is a head/);
    await expect(adapt(model, spiel(), { at: 'attention.wq' })).rejects.toThrow();
  });
});

describe('files and merges', () => {
  const saved = async (options: SpielOptions): Promise<{ files: Map<string, Uint8Array>; given: Ground }> => {
    const given = await ground({ density: 0.05, ...options });
    await given.run(3);
    const sink = memoryFolderSink();
    await saveAdapter(given.set, sink);
    return { files: sink.files, given };
  };
  const configOf = (files: ReadonlyMap<string, Uint8Array>): Record<string, unknown> =>
    JSON.parse(new TextDecoder().decode(files.get('adapter_config.json'))) as Record<string, unknown>;

  it("hold indices and values of the authors' fork of PEFT, in the order of training", async () => {
    const { files, given } = await saved({ algorithm: 'AG', initialRate: 0.3 });
    const written = configOf(files);
    expect(written).toMatchObject({
      peft_type: 'SFT',
      density: 0.05,
      num_tunable_weights: null,
      selection_algorithm: 'rigl',
      reselection_steps: 4,
      selection_accumulation_steps: 2,
      initial_reselection_rate: 0.3,
      dtype: 'float32',
      target_modules: ['q_proj', 'down_proj'],
    });
    const source = await filesFolder(files).open('adapter_model.safetensors');
    const file = await openSafetensors(source!);
    for (const [path, adapter] of given.set.sites as ReadonlyMap<string, SpielAdapter>) {
      const name = `base_model.model.${path}.sft_delta`;
      const { dtype, bytes } = await file.read(`${name}.indices`);
      expect(dtype).toBe('I32');
      const flat = [...new Int32Array(bytes.slice().buffer)];
      expect(flat).toEqual([...flatPlaces(adapter.index.read().dataSync(), adapter.shape)]);
      expect((written['num_deltas'] as Record<string, number>)[path]).toBe(flat.length);
      expect([...new Float32Array((await file.read(`${name}.values`)).bytes.slice().buffer)]).toEqual(host(adapter.values.read()));
    }
    await file.close();
  });

  it('come as sorted entries by parameter, which add up to the merged weights', async () => {
    const { given } = await saved({});
    const vector = await taskVectorOf(given.set);
    expect([...vector.keys()]).toEqual([...given.set.sites.keys()].map((path) => `${path}.weight`));
    for (const [path, adapter] of given.set.sites as ReadonlyMap<string, SpielAdapter>) {
      const { shape, index, values } = vector.get(`${path}.weight`)!;
      expect([...index]).toEqual([...index].sort((a, b) => a - b));
      const dense = new Float32Array(shape[0]! * shape[1]!);
      index.forEach((place, i) => (dense[place] = values[i]!));
      const delta = adapter.delta().dense();
      expect(host(delta)).toEqual([...dense]);
      delta.dispose();
      expect(values.every((value) => value !== 0)).toBe(true);
    }
    const mixed = { ...given.set, replaced: new Map([['model.norm.weight', adaptersOf(given.set)[0]!.values]]) };
    await expect(taskVectorOf(mixed)).rejects.toThrow(/model\.norm\.weight/);
  });

  it('are refused where they are no places of the matrix', async () => {
    const { files, given } = await saved({});
    const [path] = [...given.set.sites.keys()];
    const broken = (change: (flat: Int32Array) => void): Map<string, Uint8Array> => {
      const bytes = files.get('adapter_model.safetensors')!.slice();
      const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
      const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length))) as Record<
        string,
        { data_offsets: [number, number] }
      >;
      const [from, to] = header[`base_model.model.${path}.sft_delta.indices`]!.data_offsets.map((offset) => offset + 8 + length);
      const flat = new Int32Array(bytes.slice(from, to).buffer);
      change(flat);
      bytes.set(new Uint8Array(flat.buffer), from);
      return new Map([...files, ['adapter_model.safetensors', bytes]]);
    };
    const other = await tinyLlama(config);
    things.push(other);
    const tensors = memory().numTensors;
    const load = (from: ReadonlyMap<string, Uint8Array>): Promise<unknown> => loadAdapter(other, from, { types: adapterFiles });
    await expect(load(broken((flat) => flat.fill(flat[0]!, 0, 2)))).rejects.toThrow(/an index twice/);
    await expect(load(broken((flat) => flat.fill(256, 0, 1)))).rejects.toThrow(/no entry 256: its matrix is \[16, 16\]/);
    await expect(load(broken((flat) => flat.fill(-1, 0, 1)))).rejects.toThrow(/no entry -1/);
    const text = new TextEncoder().encode(JSON.stringify({ ...configOf(files), selection_algorithm: 'set' }));
    await expect(load(new Map([...files, ['adapter_config.json', text]]))).rejects.toThrow(/"rigl" \| "sm3"/);
    expect(memory().numTensors).toBe(tensors);
    await load(files);
    expect(await logits(other)).toEqual(await logits(given.model));
  });

  it('go into a quantized base only when told how, and say what was lost', async () => {
    const model = await tinyLlama({ ...config, hidden_size: 32, head_dim: 8, intermediate_size: 32 });
    things.push(model);
    for (const { path, weight } of model.sites('all-linear'))
      model.replace(path, ggufBlock(path, weight!.shape, 'Q4_0', await encodeGgufBlocks(path, weight!.shape, rowsOf(weight!), 'Q4_0')));
    const set = await adapt(model, spiel({ ...fast, density: 0.05 }), { at: 'down_proj' });
    const step = makeStep(model, set, agedAdamw({ learningRate: 1 }));
    await step.run({ batches: [batchOf(rows)], attempt: 0, rate: 0.05, progress: 0, steps, draw: createDraw(0, 0) });
    const before = await bytesOf(model.parameters().values());
    await expect(mergeAdapter(model)).rejects.toThrow(/requantize/);
    expect(await bytesOf(model.parameters().values())).toEqual(before);
    const unmerged = await logits(model);
    const { sites } = await mergeAdapter(model, undefined, { into: 'requantize' });
    expect(sites.length).toBe(1);
    expect(distance(await logits(model), unmerged)).toBeGreaterThan(1e-5);
  });
});

describe('train', () => {
  it('brings the choosing along, and resumes in the middle of an accumulation from its checkpoint bit for bit', async () => {
    const given = Array.from({ length: 7 }, (_, i) => rows.map((row) => row.map((id) => (id + i) % 32)));
    const start_ = async (): Promise<{ model: Model; set: AdapterSet }> => {
      const model = await tinyLlama(config);
      things.push(model);
      return { model, set: await adapt(model, spiel({ ...fast, density: 0.05 }), { at: ['q_proj', 'down_proj'] }) };
    };
    const run = async (stops: readonly number[]): Promise<{ entries: number[][]; resumed: number }> => {
      const folder = memoryFolder();
      const { model, set } = await start_();
      let resumed = 0;
      for (const [i, stop] of [...stops, Infinity].entries()) {
        const data = exactBatches(given, { vocabularySize: 32 });
        const options = { data, optimizer: agedAdamw({ learningRate: 0.02 }), steps: 7, checkpoint: { folder, every: 1, resume: i > 0 } };
        for await (const event of train(model, options)) {
          resumed += event.kind === 'resume' ? 1 : 0;
          if (event.kind === 'checkpoint' && event.step === stop) break;
        }
        // What is in memory is not what it goes on from.
        if (stop !== Infinity) for (const { values } of adaptersOf(set)) values.write(zeros([...values.shape]));
      }
      return { entries: adaptersOf(set).map(({ index, values }) => [...host(index.read()), ...host(values.read())]), resumed };
    };
    const [whole, parts] = [await run([]), await run([1, 5])];
    expect(parts.resumed).toBe(2);
    expect(parts.entries).toEqual(whole.entries);
    const { set } = await start_();
    const first = adaptersOf(set).map(({ index }) => host(index.read()));
    expect(whole.entries.map((own, i) => own.slice(0, first[i]!.length))).not.toEqual(first);
  });
});
