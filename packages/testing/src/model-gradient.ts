import {
  blockwiseBackprop,
  causalLM,
  disposeBatch,
  fullTapeBackprop,
  languageBatch,
  type Estimator,
  type LanguageBatch,
} from '@niwaki/engine';
import type { Model } from '@niwaki/nn';
import { createDraw, mul, noise, plainView, type Gradient, type Parameter, type Tensor, type View } from '@niwaki/tensor';
import { rows, trainable } from './contract-model.ts';

interface Differentiated {
  readonly loss: number;
  readonly gradients: ReadonlyMap<string, Float32Array>;
}

/** Loss and gradients of one batch on the host. */
export async function differentiate(
  model: Model,
  batch: LanguageBatch,
  {
    estimator = blockwiseBackprop(),
    view = plainView,
    micro = 0,
    weight = causalLM().weight(batch),
  }: { estimator?: Estimator; view?: View; micro?: number; weight?: number },
): Promise<Differentiated> {
  const found = new Map<string, Tensor>();
  const objective = causalLM();
  const turn = {
    model,
    objective,
    batch,
    wrt: new Set(trainable(model)),
    view,
    at: { attempt: 0, phaseStep: 0, micro, pass: 0 },
    draw: createDraw(1, 0),
    scale: 1 / weight,
  };
  const sink = {
    push: ({ path }: Parameter, gradient: Gradient) => void found.set(path, (gradient as Gradient & { kind: 'dense' }).value),
  };
  const loss = await estimator.estimate(turn, sink);
  const [value] = await loss.data();
  loss.dispose();
  const gradients = new Map<string, Float32Array>();
  for (const [path, gradient] of found) {
    gradients.set(path, (await gradient.data()) as Float32Array);
    gradient.dispose();
  }
  return { loss: value!, gradients };
}

/** On a padded batch of the contract's rows. */
export const withBatch = async <T>(
  model: Model,
  use: (batch: LanguageBatch) => Promise<T>,
  taken: readonly (readonly number[])[] = rows,
): Promise<T> => {
  const batch = languageBatch(
    taken.map((ids) => ({ ids })),
    { vocabularySize: model.info.vocabularySize, padTo: 6, padSide: 'left' },
  );
  try {
    return await use(batch);
  } finally {
    disposeBatch(batch);
  }
};

/** Wide where rounding counts, narrow where the loss is curved (before a layer norm of small values): a wrong gradient fits none. */
const widths: readonly number[] = [0.02, 0.007, 0.003];

/**
 * Largest relative error of the whole model's gradients, one random direction a trained parameter, against central
 * differences of the loss on a padded batch.
 */
export const modelGradientError = (model: Model): Promise<number> =>
  withBatch(model, async (batch) => {
    const { gradients } = await differentiate(model, batch, {});
    let worst = 0;
    for (const parameter of trainable(model)) {
      const direction = noise(parameter.shape, createDraw(5, 0).at(`${parameter.path}#direction`), 'rademacher');
      const along = await direction.data();
      const lossAt = async (h: number): Promise<number> => {
        const value = mul(direction, h);
        const view: View = { of: (read) => (read === parameter ? { kind: 'offset', value } : { kind: 'plain' }), touches: () => true };
        const { loss } = await differentiate(model, batch, { view });
        value.dispose();
        return loss;
      };
      const slope = async (h: number): Promise<number> => ((await lossAt(h)) - (await lossAt(-h))) / (2 * h);
      const gradient = gradients.get(parameter.path)!;
      const found = gradient.reduce((sum, value, i) => sum + value * along[i]!, 0);
      const size = Math.sqrt(gradient.reduce((sum, value) => sum + value ** 2, 0));
      let error = Infinity;
      for (const h of widths) {
        const expected = (4 * (await slope(h)) - (await slope(2 * h))) / 3;
        error = Math.min(error, Math.abs(found - expected) / Math.max(size, 1e-2));
        if (error < 5e-4) break;
      }
      worst = Math.max(worst, error);
      direction.dispose();
    }
    return worst;
  });

/** Largest difference of a gradient block by block, of blocks computed again wholly or in part, from the one on a full tape. */
export const tapeDifference = (model: Model): Promise<number> =>
  withBatch(model, async (batch) => {
    const full = await differentiate(model, batch, { estimator: fullTapeBackprop() });
    const gaps: number[] = [];
    for (const recompute of ['full', 'selective'] as const) {
      const { gradients } = await differentiate(model, batch, { estimator: blockwiseBackprop({ recompute }) });
      gaps.push(largestGap(gradients, full.gradients));
    }
    return Math.max(...gaps);
  });

/** Largest difference of the sum of the gradients of two micro-batches from that of one batch of both. */
export const accumulationDifference = (model: Model): Promise<number> =>
  withBatch(model, async (batch) => {
    const weight = causalLM().weight(batch);
    const whole = await differentiate(model, batch, {});
    const sum = new Map<string, Float32Array>();
    for (const [micro, ids] of rows.entries()) {
      const { gradients } = await withBatch(model, (own) => differentiate(model, own, { micro, weight }), [ids]);
      for (const [path, values] of gradients) {
        const before = sum.get(path);
        sum.set(path, before === undefined ? values : before.map((value, i) => value + values[i]!));
      }
    }
    return largestGap(sum, whole.gradients);
  });

function largestGap(given: ReadonlyMap<string, Float32Array>, expected: ReadonlyMap<string, Float32Array>): number {
  if ([...given.keys()].sort().join() !== [...expected.keys()].sort().join()) return Infinity;
  return Math.max(...[...given].flatMap(([path, values]) => Array.from(values, (value, i) => Math.abs(value - expected.get(path)![i]!))));
}
