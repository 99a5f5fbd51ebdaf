import { dispose, type Tensor } from '@niwaki/tensor';
import { forward, tokenBatch, type Model, type ForwardOptions, type TokenBatch, type TokenBatchOptions } from '@niwaki/nn';

export async function logitsOf(model: Model, batch: TokenBatch, options: ForwardOptions = {}): Promise<Float32Array> {
  const logits = forward(model, batch, options);
  const values = (await logits.data()) as Float32Array;
  logits.dispose();
  return values;
}

/** Logits of rows of ids, the batch disposed. */
export async function logitsOfRows(
  model: Model,
  rows: readonly (readonly number[])[],
  options: Partial<TokenBatchOptions> & ForwardOptions = {},
): Promise<Float32Array> {
  const { view, ...padding } = options;
  const batch = tokenBatch(rows, { vocabularySize: model.info.vocabularySize, ...padding });
  const values = await logitsOf(model, batch, view === undefined ? {} : { view });
  disposeBatch(batch);
  return values;
}

export const disposeBatch = (batch: TokenBatch): void => dispose([batch.tokenIds, batch.keysFrom, batch.keysTo]);

export function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let worst = a.length === b.length ? 0 : Infinity;
  for (let i = 0; i < a.length; i++) worst = Math.max(worst, Math.abs(a[i]! - b[i]!));
  return worst;
}

export const countOf = (parameters: Iterable<{ readonly shape: readonly number[] }>): number =>
  [...parameters].reduce((sum, { shape }) => sum + shape.reduce((x, y) => x * y, 1), 0);

export const disposeAll = (tensors: Iterable<Tensor>): void => dispose([...tensors]);
