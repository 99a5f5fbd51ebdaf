import { expect } from 'vitest';
import { causalLM, createStep, disposeBatch, languageBatch, type Estimator, type SavedState, type Step } from '@niwaki/engine';
import { adamw, type State } from '@niwaki/optim';
import { createKeyValueCache, forward, generate, type Model } from '@niwaki/nn';
import { createDraw, isOnDevice, memory, tensor2d, type Activations, type Parameter, type View } from '@niwaki/tensor';
import { tinyLlama } from './tiny-llama.ts';

/** Two sequences of ids for the tiny model. */
export const rows: readonly (readonly number[])[] = [
  [1, 2, 3, 4, 5],
  [9, 8, 7, 6, 5],
];

/** Runs a test on a tiny model of its own, and checks that no tensor is left of it. */
export async function onTiny(test: (model: Model) => Promise<void>, config: Record<string, unknown> = {}): Promise<void> {
  const before = memory().numTensors;
  const model = await tinyLlama(config);
  try {
    await test(model);
  } finally {
    model.dispose();
  }
  expect(memory().numTensors).toBe(before);
}

export async function logits(model: Model, view?: View, ids: readonly (readonly number[])[] = rows): Promise<Float32Array> {
  const tokenIds = tensor2d(ids.flat(), [ids.length, ids[0]!.length], 'int32');
  try {
    const values = forward(model, { tokenIds }, view === undefined ? {} : { view });
    const data = (await values.data()) as Float32Array;
    values.dispose();
    return data;
  } finally {
    tokenIds.dispose();
  }
}

/** Checks that generation, which replays its passes where a device can, gives what passes give that each run by themselves. */
export async function expectReplays(model: Model, activations: Activations = 'exact'): Promise<void> {
  const [prompt] = rows as [readonly number[]];
  const cache = createKeyValueCache();
  let next = prompt;
  for await (const { id, logProbability } of generate(model, prompt, {
    maxNewTokens: 6,
    stopIds: [],
    activations,
    logProbabilities: true,
  })) {
    const tokenIds = tensor2d([...next], [1, next.length], 'int32');
    const all = forward(model, { tokenIds }, { session: { cache }, activations });
    const last = ((await all.data()) as Float32Array).slice(-model.info.vocabularySize);
    all.dispose();
    tokenIds.dispose();
    const most = Math.max(...last);
    expect(last[id]).toBeGreaterThan(most - 1e-5 * Math.max(1, Math.abs(most)));
    const total = most + Math.log(last.reduce((sum, logit) => sum + Math.exp(logit - most), 0));
    expect(logProbability).toBeCloseTo(last[id]! - total, 4);
    next = [id];
  }
  cache.dispose();
}

export const sizeOf = (shape: readonly number[]): number => shape.reduce((product, side) => product * side, 1);
export const trainable = (model: Model): Parameter[] => [...model.parameters().values()].filter((parameter) => parameter.trainable);
export const siteParameters = (model: Model): Parameter[] => [
  ...new Set(
    model.sites(() => true).flatMap(({ weight, bias }) => [...Object.values(weight?.parts ?? {}), ...(bias === undefined ? [] : [bias])]),
  ),
];

export const bytes = async (parameter: Parameter): Promise<string> => {
  const { bytes: raw } = await parameter.raw();
  return Array.from(raw, (byte) => String.fromCharCode(byte)).join('');
};

/** Contents by path; statistics are nobody's promise. */
export async function bytesOf(parameters: Iterable<Parameter>): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  for (const parameter of parameters) if (parameter.role !== 'statistic') found.set(parameter.path, await bytes(parameter));
  return found;
}

export const sameBytes = (a: Uint8Array, b: Uint8Array): boolean => a.length === b.length && a.every((byte, i) => byte === b[i]);

export function distance(a: Float32Array, b: Float32Array): number {
  if (a.length !== b.length) return Infinity;
  let worst = 0;
  for (let i = 0; i < a.length; i++) {
    const gap = Math.abs(a[i]! - b[i]!);
    if (!(gap <= worst)) worst = Number.isNaN(gap) ? Infinity : gap;
  }
  return worst;
}

const rateDefault = 0.01;

/** AdamW without decay: what has no gradient stays what it is. */
export function stepOf(model: Model, { rate = rateDefault, estimator }: { rate?: number; estimator?: Estimator } = {}): Step {
  return createStep({
    model,
    objective: causalLM(),
    optimizer: adamw({ learningRate: rate, weightDecay: 0 }),
    ...(estimator && { estimator }),
  });
}

/** Runs steps on the contract's two rows, after each of which as many tensors live as after the first; their losses. */
export async function advance(
  model: Model,
  step: Step,
  { from, steps, rate = rateDefault }: { from: number; steps: number; rate?: number },
): Promise<number[]> {
  const batch = languageBatch(
    rows.map((ids) => ({ ids })),
    { vocabularySize: model.info.vocabularySize },
  );
  const losses: number[] = [];
  let held: number | undefined;
  for (let attempt = from; attempt < from + steps; attempt++) {
    const { loss, applied } = await step.run({ batches: [batch], attempt, rate, progress: 0, draw: createDraw(1, attempt) });
    expect(applied).toBe(true);
    losses.push(loss);
    // The first step may make what the others use.
    held ??= memory().numTensors;
    expect(memory().numTensors).toBe(held);
  }
  disposeBatch(batch);
  return losses;
}

export async function train(
  model: Model,
  options: { steps: number; rate?: number; estimator?: Estimator },
): Promise<{ losses: number[]; stateBytes: number }> {
  const step = stepOf(model, options);
  const losses = await advance(model, step, { from: 0, ...options });
  const stateBytes = step.stateBytes();
  step.dispose();
  return { losses, stateBytes };
}

export const cloned = <S extends SavedState>(state: S): S =>
  Object.fromEntries(
    Object.entries(state).map(([name, value]) => [name, typeof value === 'object' && isOnDevice(value) ? value.clone() : value]),
  ) as S;

/** The states of a step that holds all of them on the device. */
export function deviceStates(step: Step): ReadonlyMap<string, State> {
  for (const [path, state] of step.state())
    for (const value of Object.values(state))
      if (typeof value === 'object' && !isOnDevice(value)) throw new Error(`the state of '${path}' is in host memory`);
  return step.state() as ReadonlyMap<string, State>;
}
