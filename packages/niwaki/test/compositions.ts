import { expect } from 'vitest';
import { check, createStep, type Run, type StepOptions } from '@niwaki/engine';
import { siteParty } from '@niwaki/nn';
import { createDraw, type Conflict, type Party } from '@niwaki/tensor';
import { encodeGgufBlocks, ggufBlock, rowsOf, type GgufEncoded } from '@niwaki/weights';
import {
  adamw,
  adapt,
  causalLM,
  disposeBatch,
  languageBatch,
  type Method,
  type Model,
  type Parameter,
  type Participant,
  type Transform,
} from '../src/index.ts';
import type { AdapterCase } from '../../testing/src/adapter-contract.ts';
import { rows } from '../../testing/src/contract-model.ts';
import type { TransformCase } from '../../testing/src/transform-contract.ts';
import { applyEverywhere, type WeightMethodCase } from '../../testing/src/weight-method-contract.ts';
import * as lowrank from '../../lowrank/test/contract-list.ts';
import * as optim from '../../optim/test/contract-list.ts';
import * as quant from '../../quant/test/contract-list.ts';
import * as sparse from '../../sparse/test/contract-list.ts';

// What the packages list in their contract suites, all together: a method that is listed there is composed here.

export type Adapter = AdapterCase;

export const nameOf = ({ kind, title = kind }: Pick<Method, 'kind' | 'title'>): string => title;

/** The first entry of each kind: variants differ in what no other noun sees. */
function oneOfEach<T>(list: Readonly<Record<string, T>>, kindOf: (entry: T) => string | undefined): [string, T][] {
  const seen = new Set<string | undefined>();
  return Object.entries(list).filter(([, entry]) => {
    const kind = kindOf(entry);
    return !seen.has(kind) && seen.add(kind);
  });
}

const quantizing = { ...quant.quantizers, ...lowrank.weightMethods };
const weightMethods = { ...quantizing, ...sparse.pruners };
const maker = ([name, { make }]: [string, WeightMethodCase]): Named<() => Method> => [name, make];

type Named<T> = readonly [name: string, entry: T];

export const adapters: readonly Named<Adapter>[] = oneOfEach(
  { ...lowrank.adapters, ...lowrank.moduleAdapters, ...lowrank.residualAdapters, ...lowrank.quantizedAdapters, ...sparse.adapters },
  ({ make }) => `${nameOf(make())} ${make().rewrites}`,
);
/** Optimizers in all their variants, and one of each. */
export const optimizers: readonly Named<TransformCase>[] = Object.entries({ ...optim.optimizers, ...lowrank.optimizers });
export const eachOptimizer: readonly Named<TransformCase>[] = oneOfEach(Object.fromEntries(optimizers), ({ make }) => make().name);
export const participants: readonly Named<{ make(): Participant }>[] = Object.entries(sparse.participants);
export const quantizers: readonly Named<() => Method>[] = oneOfEach(quantizing, ({ make }) => make().kind).map(maker);
export const pruners: readonly Named<() => Method>[] = Object.entries(sparse.pruners).map(maker);

const storedAs =
  (format: GgufEncoded) =>
  async (model: Model): Promise<void> => {
    for (const { path, weight } of model.sites('all-linear')) {
      const blocks = await encodeGgufBlocks(path, weight!.shape, rowsOf(weight!), format);
      model.replace(path, ggufBlock(path, weight!.shape, format, blocks));
    }
  };

/** Forms a matrix may be stored in, and how the linear maps of a model come to them: one pruner of each store. */
export const bases: readonly Named<(model: Model) => Promise<void>>[] = [
  ['f32', async () => {}],
  ...(['F16', 'Q4_0', 'Q8_0'] as const).map((format) => [format, storedAs(format)] as const),
  ...oneOfEach(weightMethods, ({ make }) => (make().options['store'] as string | undefined) ?? make().kind).map(
    ([name, { make }]) => [name, (model: Model) => applyEverywhere(model, make())] as const,
  ),
];

/** Sites of a selection that store a matrix. */
export const partiesAt = (model: Model, at: Adapter['at'] = 'all-linear', method?: Method): Party[] =>
  model
    .sites(at, { points: method?.points })
    .filter(({ weight }) => weight !== undefined)
    .map(siteParty);

export interface Trial extends Partial<Pick<StepOptions, 'commit' | 'participants' | 'wrt'>> {
  readonly optimizer: Transform;
  readonly rate: number;
  readonly steps?: number;
  /** Micro-batches of a step. */
  readonly accumulate?: number;
}

/** Trains what is trainable; the losses. */
export async function fit(model: Model, { optimizer, rate, steps = 3, accumulate = 1, ...options }: Trial): Promise<number[]> {
  const batch = languageBatch(
    rows.map((ids) => ({ ids })),
    { vocabularySize: model.info.vocabularySize },
  );
  const losses: number[] = [];
  try {
    const step = createStep({ model, objective: causalLM(), optimizer, ...options });
    try {
      for (let attempt = 0; attempt < steps; attempt++) {
        const batches = Array.from({ length: accumulate }, () => batch);
        const { loss } = await step.run({ batches, attempt, rate, progress: 0, draw: createDraw(1, attempt) });
        losses.push(loss);
      }
    } finally {
      step.dispose();
    }
  } finally {
    disposeBatch(batch);
  }
  return losses;
}

/**
 * What `check` says of a run, held against what happens: a legal one must go through, and an illegal one must fail with
 * the first of the computed conflicts.
 */
export async function expectAsComputed(run: Run, attempt: () => Promise<unknown>): Promise<readonly Conflict[]> {
  const conflicts = check(run);
  const outcome = await attempt().then(
    () => undefined,
    (error: unknown) => error,
  );
  if (conflicts.length === 0) expect(outcome).toBeUndefined();
  else {
    const { token, rule, message } = conflicts[0]!;
    expect(outcome).toMatchObject({ details: { token, rule }, message: expect.stringContaining(message) as string });
  }
  return conflicts;
}

export const adam: Pick<Trial, 'optimizer' | 'rate'> = { optimizer: adamw({ learningRate: 1, weightDecay: 0 }), rate: 0.02 };

export const put = (model: Model, { make, at = 'all-linear' }: Adapter, name = 'default'): ReturnType<typeof adapt> =>
  adapt(model, make(), { at, name });

export const expectFall = (losses: readonly number[]): void => {
  expect(losses.every(Number.isFinite)).toBe(true);
  expect(losses.at(-1)).toBeLessThan(losses[0]!);
};

/** What stores the linear maps, to be trained: the matrix, the stored values, or else codes and scales, which cannot. */
export function ownParts(model: Model): Parameter[] {
  const parts = model.sites('all-linear').map(({ weight }) => {
    const all = Object.values(weight!.parts);
    return weight!.matrix ?? all.find(({ role }) => role === 'values') ?? all[0]!;
  });
  for (const parameter of model.parameters().values()) parameter.trainable = parts.includes(parameter) && parameter.role !== 'codes';
  return parts;
}

/** Mulberry32: the same samples in every run. */
export function sampler(seed: number): <T>(list: readonly T[]) => T {
  let state = seed;
  const next = (): number => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  return (list) => list[Math.floor(next() * list.length)]!;
}

/** One method after another, then an adapter that trains; or the computed error. */
export async function expectThrough(model: Model, makers: readonly (() => Method)[], entry: Adapter, trial: Trial = adam): Promise<void> {
  const methods = makers.map((make) => make());
  const adapter = entry.make();
  const run = { sites: partiesAt(model), methods: [...methods, adapter] };
  const [expected] = check(run);
  const failure = await (async () => {
    for (const method of methods) await applyEverywhere(model, method);
    await put(model, entry);
  })().then(
    () => undefined,
    (error: unknown) => error as { readonly details?: Readonly<Record<string, unknown>> },
  );
  // The text names what is stored by its format, and in a computed run by the method that will have made it.
  expect([failure?.details?.['token'], failure?.details?.['rule']]).toEqual([expected?.token, expected?.rule]);
  if (failure === undefined) expectFall(await fit(model, trial));
}
