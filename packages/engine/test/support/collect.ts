import { createDraw, dispose, plainView, type Parameter, type Tensor } from '@niwaki/tensor';
import type { Batch } from '@niwaki/weights';
import type { Model } from '@niwaki/nn';
import { causalLM, type Estimator, type Objective } from '@niwaki/engine';

export interface Collected {
  readonly loss: number;
  readonly gradients: ReadonlyMap<string, Float32Array>;
  /** Paths in the order in which they became final. */
  readonly order: readonly string[];
}

export interface CollectOptions {
  readonly objective?: Objective;
  readonly wrt?: readonly Parameter[];
  readonly between?: () => Promise<void>;
}

/** Loss and dense gradients of one batch on the host; the loss is divided by the batch's targets. */
export async function collect(estimator: Estimator, model: Model, batch: Batch, options: CollectOptions = {}): Promise<Collected> {
  const { objective = causalLM(), wrt = [...model.parameters().values()].filter(({ trainable }) => trainable), between } = options;
  const pushed: [Parameter, Tensor][] = [];
  const estimate = estimator.estimate(
    {
      model,
      objective,
      batch,
      wrt: new Set(wrt),
      view: plainView,
      at: { attempt: 0, phaseStep: 0, micro: 0, pass: 0 },
      draw: createDraw(1, 0),
      scale: 1 / objective.weight(batch),
      ...(between === undefined ? {} : { between }),
    },
    {
      push: (parameter, gradient) => {
        if (gradient.kind !== 'dense') throw new Error(`unexpected ${gradient.kind} gradient`);
        pushed.push([parameter, gradient.value]);
      },
    },
  );
  const loss = await estimate.catch((error: unknown) => {
    dispose(pushed.map(([, value]) => value));
    throw error;
  });
  const gradients = new Map<string, Float32Array>();
  for (const [{ path }, value] of pushed) {
    if (gradients.has(path)) throw new Error(`${path} was pushed twice`);
    gradients.set(path, (await value.data()) as Float32Array);
  }
  const [lossValue] = await loss.data();
  dispose([loss, ...pushed.map(([, value]) => value)]);
  return { loss: lossValue!, gradients, order: pushed.map(([{ path }]) => path) };
}

/** Gradients that differ by more than `tolerance` of their largest entry, in words; all of `given` must be in `expected`. */
export function apart(given: ReadonlyMap<string, Float32Array>, expected: ReadonlyMap<string, Float32Array>, tolerance: number): string[] {
  return [...given].flatMap(([path, values]) => {
    const error = relativeError(values, expected.get(path)!);
    return error < tolerance ? [] : [`${path}: ${error}`];
  });
}

/** Largest difference relative to the largest entry of `expected`. */
function relativeError(given: ArrayLike<number>, expected: ArrayLike<number>): number {
  let [difference, scale] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    difference = Math.max(difference, Math.abs(given[i]! - expected[i]!));
    scale = Math.max(scale, Math.abs(expected[i]!));
  }
  return scale === 0 ? difference : difference / scale;
}
