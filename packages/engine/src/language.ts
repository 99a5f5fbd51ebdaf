import { ConfigError, crossEntropy, DataError, ShapeError, tensor1d, type Tensor1D, type Tensor2D } from '@niwaki/tensor';
import { checkIds, packedBatch, type TokenBatch, type TokenBatchOptions } from '@niwaki/nn';
import type { Batch } from '@niwaki/weights';
import type { Objective } from './objective.ts';

/** One row of a language batch, on the host; all arrays have the row's own length. */
export interface LanguageRow {
  readonly ids: ArrayLike<number>;
  /** The id to predict at each position, negative where nothing is. Default: the next token of the same document. */
  readonly targets?: ArrayLike<number>;
  /** Index at which the document of each position starts: attention and positions begin there. Default: one document. */
  readonly starts?: ArrayLike<number>;
}

/**
 * Tokens, and what is to be predicted, as two lists: `targets[i]` is the id that row `targetRows[i]` of the flattened
 * [batch · time] must give. Positions without a target are in neither, so their number is known on the host by shape.
 */
export interface LanguageBatch extends TokenBatch {
  /** int32 [n], ascending. */
  readonly targetRows: Tensor1D;
  /** int32 [n], ids in the vocabulary. */
  readonly targets: Tensor1D;
}

/**
 * A batch for causal language modelling from rows of different lengths. Six small int32 tensors, the caller's to dispose.
 * @throws DataError for an id or a target outside the vocabulary; ShapeError where a row's arrays differ in length
 */
export function languageBatch(rows: readonly LanguageRow[], options: TokenBatchOptions): LanguageBatch {
  const time = options.padTo ?? Math.max(0, ...rows.map(({ ids }) => ids.length));
  const at: number[] = [];
  const wanted: number[] = [];
  for (const [b, row] of rows.entries()) {
    const targets = targetsOf(row, b);
    const start = b * time + (options.padSide === 'left' ? time - row.ids.length : 0);
    for (let t = 0; t < targets.length; t++) {
      if (targets[t]! < 0) continue;
      at.push(start + t);
      wanted.push(targets[t]!);
    }
  }
  checkIds(wanted, { vocabularySize: options.vocabularySize, where: 'targets' });
  const tokens = packedBatch(rows.map(documentsOf), options);
  return { ...tokens, targetRows: tensor1d(at, 'int32'), targets: tensor1d(wanted, 'int32') };
}

function targetsOf({ ids, targets, starts }: LanguageRow, row: number): ArrayLike<number> {
  for (const [name, list] of Object.entries({ targets, starts })) {
    if (list !== undefined && list.length !== ids.length) {
      throw new ShapeError(`row ${row} has ${ids.length} ids and ${list.length} ${name}`, {
        row,
        expected: ids.length,
        given: list.length,
      });
    }
  }
  if (targets !== undefined) return targets;
  const last = ids.length - 1;
  return Array.from(ids, (_, t) => (t === last || (starts !== undefined && starts[t + 1] === t + 1) ? -1 : ids[t + 1]!));
}

function documentsOf({ ids, starts }: LanguageRow, row: number): number[][] {
  const documents: number[][] = [];
  let start = 0;
  for (let t = 0; t < ids.length; t++) {
    const given = starts?.[t] ?? 0;
    if (given === t) documents.push([]);
    if (given === t) start = t;
    else if (given !== start) {
      throw new DataError(`row ${row}: position ${t} says its document starts at ${given}, the one before at ${start}`, {
        row,
        at: t,
        start: given,
      });
    }
    documents.at(-1)!.push(ids[t]!);
  }
  return documents;
}

/** Frees the tensors of a batch. */
export function disposeBatch(batch: Batch): void {
  for (const value of Object.values(batch)) if (value !== undefined && 'dtype' in value) value.dispose();
}

/**
 * Next-token prediction: cross-entropy of each target, in nats. Reads `targetRows` and `targets` of a `languageBatch`
 * and the stream `logits` of the head.
 */
export function causalLM(): Objective {
  return {
    name: 'causalLM',
    weight: (batch) => listOf(batch, 'targetRows').size,
    rows: (batch) => {
      const index = listOf(batch, 'targetRows');
      const tokens = batch['tokenIds'];
      // Ascending and as many as there are rows: all of them.
      const everyRow = tokens !== undefined && 'dtype' in tokens && tokens.size === index.size;
      return { index, target: listOf(batch, 'targets'), everyRow };
    },
    score: ({ logits }, target) => {
      if (logits === undefined) throw new ConfigError("causalLM reads the stream 'logits', which the last stage does not write");
      return crossEntropy(logits as Tensor2D, target);
    },
  };
}

function listOf(batch: Batch, field: 'targetRows' | 'targets'): Tensor1D {
  const list = batch[field];
  if (list !== undefined && 'dtype' in list && list.dtype === 'int32' && list.rank === 1) return list as Tensor1D;
  throw new DataError(`the batch has no ${field}, int32 [n]`, { fields: Object.keys(batch), help: 'Build it with languageBatch().' });
}
