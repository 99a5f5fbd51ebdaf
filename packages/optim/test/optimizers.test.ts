import { describe, expect, it } from 'vitest';
import {
  ConfigError,
  createDraw,
  denseParameter,
  keep,
  memory,
  scalar,
  StateError,
  tensor1d,
  tidy,
  type Parameter,
  type Role,
  type Scalar,
  type Tensor,
} from '@niwaki/tensor';
import {
  addDecayedWeights,
  adamw,
  chain,
  clipByEntry,
  clipByGlobalNorm,
  scaleByAdam,
  scaleByLearningRate,
  sgd,
  type State,
  type Transform,
  type UpdateContext,
} from '../src/index.ts';

const parameter = (values: number[], path = 'p.weight', role: Role = 'matrix'): Parameter =>
  denseParameter(path, tensor1d(values), { role, trainable: true });

interface StepOptions {
  rate: number;
  total?: Scalar;
  updates: number;
  ok?: number;
}

/** One step of one parameter, as a training loop does it. */
function step(transform: Transform, p: Parameter, state: State, gradient: readonly number[], options: StepOptions): State {
  return tidy(() => {
    const context: UpdateContext = {
      parameter: p,
      attempt: options.updates - 1,
      updates: scalar(options.updates),
      rate: options.rate,
      progress: 0,
      draw: createDraw(0, 0),
      ...(options.total === undefined ? {} : { total: options.total }),
    };
    const made = transform.update({ kind: 'dense', value: tensor1d([...gradient]) }, state, context);
    p.commit(made.update, scalar(options.ok ?? 1), made.how);
    const tensors = Object.values(made.state).filter((value): value is Tensor => typeof value !== 'number');
    const kept = new Set(tensors.map(keep));
    for (const old of Object.values(state)) if (typeof old !== 'number' && !kept.has(old)) old.dispose();
    return made.state;
  });
}

function run(transform: Transform, start: number[], gradients: readonly (readonly number[])[], rate: number): number[][] {
  const p = parameter(start);
  let state = transform.init(p);
  const path = gradients.map((gradient, i) => {
    state = step(transform, p, state, gradient, { rate, updates: i + 1 });
    return [...p.read().dataSync()];
  });
  for (const value of Object.values(state)) if (typeof value !== 'number') value.dispose();
  p.dispose();
  return path;
}

const gradients = [
  [0.1, -0.5, 2],
  [0.3, 0.25, -1],
  [-0.2, 0, 0.5],
];

/** Largest difference from numbers worked out in double precision; f32 keeps it below `precision` for values near 1. */
const precision = 3e-7;
function worst(given: readonly number[][], expected: readonly number[][]): number {
  expect(given.map((row) => row.length)).toEqual(expected.map((row) => row.length));
  return Math.max(...given.flatMap((row, i) => row.map((value, j) => Math.abs(value - expected[i]![j]!))));
}

describe('adamw', () => {
  it('gives the numbers of torch.optim.AdamW', () => {
    expect(
      worst(run(adamw({ learningRate: 0.1, weightDecay: 0.1 }), [1, -2, 0.5], gradients, 0.1), [
        [0.89000001, -1.880000002, 0.395000001],
        [0.789321902, -1.834566299, 0.364416297],
        [0.755638304, -1.795632706, 0.326729219],
      ]),
    ).toBeLessThan(precision);
  });

  it('moves every entry by the whole rate in its first step, however small the gradient', () => {
    // sqrt of (1 - 0.999)·g² over 1 - 0.999: a difference taken in f32 would be off by 2e-5.
    const [first] = run(adamw({ learningRate: 1, weightDecay: 0 }), [0, 0, 0], [[1e-3, -7, 1e4]], 1);
    expect(worst([first!], [[-1e-3 / (1e-3 + 1e-8), 1, -1]])).toBeLessThan(2e-6);
  });

  it('decays by 1 - rate · weightDecay before it adds, bit for bit', () => {
    const [values] = run(adamw({ learningRate: 0.5, weightDecay: 0.2 }), [3, -7, 0.1], [[0, 0, 0]], 0.5);
    expect(values).toEqual(Array.from(Float32Array.of(3, -7, 0.1), (value) => Math.fround(value * Math.fround(1 - 0.5 * 0.2))));
  });

  it('takes the rate of the step, not its own', () => {
    const [values] = run(adamw({ learningRate: 123, weightDecay: 0 }), [0], [[1]], 0.25);
    expect(worst([values!], [[-0.25]])).toBeLessThan(precision);
    expect(adamw({ learningRate: 123 }).learningRate).toBe(123);
  });

  it('keeps its groups inside a chain', () => {
    const optimizer = chain(clipByEntry(9), adamw({ learningRate: 1, weightDecay: 0, groups: [{ at: 'p.weight', rateScale: 3 }] }));
    expect(worst(run(optimizer, [0], [[1]], 1), [[-3]])).toBeLessThan(1e-6);
  });

  it('lets groups change decay and rate, by role and by path', () => {
    const optimizer = adamw({
      learningRate: 0.1,
      weightDecay: 0.5,
      groups: [
        { roles: ['norm', 'bias'], weightDecay: 0 },
        { at: '**.lora_B.weight', rateScale: 16 },
      ],
    });
    const after = (path: string, role: Role): number => {
      const p = parameter([2], path, role);
      const state = step(optimizer, p, optimizer.init(p), [1], { rate: 0.1, updates: 1 });
      const [value] = p.read().dataSync();
      for (const each of Object.values(state)) if (typeof each !== 'number') each.dispose();
      p.dispose();
      return value!;
    };
    expect(after('m.norm.weight', 'norm')).toBeCloseTo(2 - 0.1, 5);
    expect(after('m.q_proj.weight', 'matrix')).toBeCloseTo(2 * (1 - 0.05) - 0.1, 5);
    expect(after('m.q_proj.lora_B.weight', 'adapterB')).toBeCloseTo(2 * (1 - 0.8) - 1.6, 5);
  });

  it('leaves a refused step without a trace in the parameter', () => {
    const optimizer = adamw({ learningRate: 0.1 });
    const p = parameter([1, 2]);
    const state = step(optimizer, p, optimizer.init(p), [NaN, 1], { rate: 0.1, updates: 1, ok: 0 });
    expect([...p.read().dataSync()]).toEqual([1, 2]);
    for (const each of Object.values(state)) if (typeof each !== 'number') each.dispose();
    p.dispose();
  });

  it('holds two tensors a parameter and leaves none behind', () => {
    const before = memory().numTensors;
    const p = parameter([1, 2, 3]);
    const optimizer = adamw({ learningRate: 0.1 });
    let state = optimizer.init(p);
    expect(Object.keys(state).sort()).toEqual(['adam.momentum', 'adam.variance']);
    for (let i = 1; i <= 3; i++) {
      state = step(optimizer, p, state, [1, 2, 3], { rate: 0.1, updates: i });
      expect(memory().numTensors).toBe(before + 3);
    }
    for (const value of Object.values(state)) if (typeof value !== 'number') value.dispose();
    p.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it.each([
    { learningRate: NaN },
    { learningRate: -1 },
    { learningRate: 1, beta1: 1 },
    { learningRate: 1, beta2: -0.1 },
    { learningRate: 1, eps: -1 },
    { learningRate: 1, weightDecay: -1 },
    { learningRate: 1, groups: [{ weightDecay: 0 }] },
    { learningRate: 1, groups: [{ roles: ['norm' as const], weightDecay: -1 }] },
  ])('refuses %o', (options) => {
    expect(() => adamw(options)).toThrow(ConfigError);
  });
});

describe('sgd', () => {
  it('gives the numbers of torch.optim.SGD with momentum and decay', () => {
    const options = { learningRate: 0.1, momentum: 0.9, weightDecay: 0.01 };
    expect(
      worst(run(sgd(options), [1, -2, 0.5], gradients, 0.1), [
        [0.989, -1.948, 0.2995],
        [0.948111, -1.924252, 0.2187505],
        [0.930362789, -1.900954548, 0.095857199],
      ]),
    ).toBeLessThan(precision);
    expect(
      worst(run(sgd({ ...options, nesterov: true }), [1, -2, 0.5], gradients, 0.1), [
        [0.9791, -1.9012, 0.11905],
        [0.91132971, -1.90296772, 0.146418805],
        [0.914486113, -1.880154109, -0.014120321],
      ]),
    ).toBeLessThan(precision);
  });

  it('without momentum is the gradient times the rate, and has no state', () => {
    const optimizer = sgd({ learningRate: 0.5 });
    expect(run(optimizer, [1, 2], [[2, -4]], 0.5)).toEqual([[0, 4]]);
    const p = parameter([1]);
    expect(optimizer.init(p)).toEqual({});
    p.dispose();
  });
});

describe('clipByGlobalNorm', () => {
  const clip = clipByGlobalNorm(1);
  const clipped = (values: number[], all: number[][]): number[] => {
    const p = parameter(values.map(() => 0));
    const total = tidy(() => {
      const parts = all.map((each) => clip.measure!({ kind: 'dense', value: tensor1d(each) }, {}).dataSync()[0]!);
      return scalar(parts.reduce((sum, part) => sum + part, 0));
    });
    const optimizer = chain(clip, scaleByLearningRate());
    step(optimizer, p, optimizer.init(p), values, { rate: 1, updates: 1, total });
    const result = [...p.read().dataSync()].map((value) => -value);
    p.dispose();
    total.dispose();
    return result;
  };

  it('scales by maxNorm / (norm + 1e-6), the norm taken over all gradients', () => {
    expect(worst([clipped([3, 0], [[3, 0], [4]])], [[3 / (5 + 1e-6), 0]])).toBeLessThan(precision);
    expect(worst([clipped([4], [[3, 0], [4]])], [[4 / (5 + 1e-6)]])).toBeLessThan(precision);
  });

  it('leaves gradients below the bound as they are, bit for bit', () => {
    expect(clipped([0.3, -0.4], [[0.3, -0.4]])).toEqual([...Float32Array.of(0.3, -0.4)]);
  });

  it('says why it cannot clip a gradient that comes alone', () => {
    const p = parameter([0]);
    expect(() => step(clip, p, {}, [1], { rate: 1, updates: 1 })).toThrow(StateError);
    p.dispose();
  });

  it('comes first in a chain, and once', () => {
    expect(() => chain(scaleByAdam(), clip)).toThrow(ConfigError);
    expect(() => chain(clip, chain(clipByGlobalNorm(2), scaleByAdam()))).toThrow(ConfigError);
    expect(chain(clip, adamw({ learningRate: 1 })).measure).toBeDefined();
    expect(adamw({ learningRate: 1 }).measure).toBeUndefined();
  });
});

describe('chain', () => {
  it('names state by its part, so that a part without state may come and go', () => {
    const p = parameter([1]);
    const names = (transform: Transform): string[] => {
      const state = transform.init(p);
      for (const value of Object.values(state)) if (typeof value !== 'number') value.dispose();
      return Object.keys(state).sort();
    };
    const plain = adamw({ learningRate: 1 });
    expect(names(chain(clipByGlobalNorm(1), plain))).toEqual(names(plain));
    expect(names(chain(clipByEntry(1), adamw({ learningRate: 1, groups: [{ roles: ['norm'], weightDecay: 0 }] })))).toEqual(names(plain));
    expect(names(chain(scaleByAdam(), scaleByAdam()))).toEqual(['adam.momentum', 'adam.variance', 'adam2.momentum', 'adam2.variance']);
    p.dispose();
  });

  it('multiplies decays and keeps the rate of its optimizer', () => {
    const optimizer = chain(addDecayedWeights(0.5), addDecayedWeights(0.5), sgd({ learningRate: 3 }));
    expect(optimizer.learningRate).toBe(3);
    const [values] = run(optimizer, [8], [[0]], 1);
    expect(values).toEqual([2]);
  });

  it('bounds entries', () => {
    const [values] = run(chain(clipByEntry(0.5), scaleByLearningRate()), [0, 0, 0], [[2, -3, 0.25]], 1);
    expect(values).toEqual([-0.5, 0.5, -0.25]);
  });
});
