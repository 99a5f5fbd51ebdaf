import { createStep, disposeBatch, languageBatch, type Objective } from '@niwaki/engine';
import type { Model } from '@niwaki/nn';
import { adamw } from '@niwaki/optim';
import { createDraw, gather, mean, square, sub, tensor2d, withAdapters, type Tensor1D } from '@niwaki/tensor';
import { logits, rows } from './contract-model.ts';

const meanSquare = (a: Float32Array, b: Float32Array): number => a.reduce((sum, value, i) => sum + (value - b[i]!) ** 2, 0) / a.length;

/**
 * Trains what is active in a model to give a teacher's logits on the contract's two rows: AdamW on the mean squared
 * difference. Returns the difference before and after, each over the teacher's own mean squared change of the base.
 */
export async function fitLogits(
  model: Model,
  wanted: Float32Array,
  { steps }: { steps: number },
): Promise<[before: number, after: number]> {
  const width = model.info.vocabularySize;
  const table = tensor2d(wanted, [wanted.length / width, width]);
  const objective: Objective = {
    name: 'logits',
    weight: () => table.shape[0],
    rows: ({ targetRows }) => ({ index: targetRows as Tensor1D, target: targetRows as Tensor1D }),
    score: ({ logits: given }, target) => mean(square(sub(given!, gather(table, target))), 1) as Tensor1D,
  };
  const batch = languageBatch(
    rows.map((ids) => ({ ids, targets: ids })),
    { vocabularySize: width },
  );
  const step = createStep({ model, objective, optimizer: adamw({ learningRate: 0.05, weightDecay: 0 }) });
  const change = meanSquare(wanted, await logits(model, withAdapters('none')));
  const before = meanSquare(wanted, await logits(model)) / change;
  for (let attempt = 0; attempt < steps; attempt++) {
    // The rate falls to nothing, so that Adam comes to rest.
    const rate = 0.05 * (1 - attempt / steps);
    await step.run({ batches: [batch], attempt, rate, progress: attempt / steps, draw: createDraw(1, attempt) });
  }
  const after = meanSquare(wanted, await logits(model)) / change;
  step.dispose();
  disposeBatch(batch);
  table.dispose();
  return [before, after];
}
