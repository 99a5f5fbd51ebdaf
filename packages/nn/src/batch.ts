/** Token batches: ids, and which keys each query may see. Everything is known on the host here, so it is checked here. */
import {
  add,
  ConfigError,
  DataError,
  maximum,
  range,
  reshape,
  ShapeError,
  tensor2d,
  tile,
  zeros,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import type { Batch } from '@niwaki/weights';

export interface TokenBatch extends Batch {
  /** int32 [batch, time]. */
  readonly tokenIds: Tensor2D;
  /** int32 [batch, time]: a query sees the keys keysFrom <= j < keysTo; padding sees none. */
  readonly keysFrom: Tensor2D;
  readonly keysTo: Tensor2D;
  /** Position of each token in its own document, batch · time numbers; 0 on padding. */
  readonly positions: readonly number[];
}

export interface TokenBatchOptions {
  readonly vocabularySize: number;
  /** Length of every row; default the longest. */
  readonly padTo?: number;
  /** Where padding goes; default 'right'. */
  readonly padSide?: 'left' | 'right';
  /** Any valid id: padding is known by length, never by id. Default 0. */
  readonly padId?: number;
}

/**
 * A batch of rows of different lengths, one document each.
 * @throws DataError for an id outside the vocabulary or an empty row; ShapeError for a row longer than `padTo`
 * @example
 * const batch = tokenBatch([[5, 6, 2], [7, 2]], { vocabularySize: 32, padSide: 'left' });
 */
export function tokenBatch(rows: readonly (readonly number[])[], options: TokenBatchOptions): TokenBatch {
  return packedBatch(
    rows.map((row) => [row]),
    options,
  );
}

/**
 * A batch whose rows hold several documents each, one after another: positions restart, and attention stays inside a
 * document.
 */
export function packedBatch(rows: readonly (readonly (readonly number[])[])[], options: TokenBatchOptions): TokenBatch {
  // Names are not checked: a model's whole `info` may be handed over.
  const { vocabularySize, padSide = 'right', padId = 0 } = options;
  const lengths = rows.map((documents) => documents.reduce((sum, document) => sum + document.length, 0));
  const time = options.padTo ?? Math.max(0, ...lengths);
  if (rows.length === 0 || time === 0) throw new DataError('a batch needs at least one token', { rows: rows.length });
  if (!Number.isInteger(time) || time < 0) throw new ConfigError(`padTo must be a whole number, got ${time}`, { padTo: time });
  checkIds([padId], { vocabularySize, where: 'padId' });
  const size = rows.length * time;
  const [ids, from, to] = [new Int32Array(size).fill(padId), new Int32Array(size), new Int32Array(size)];
  const positions = Array.from({ length: size }, () => 0);
  for (const [b, documents] of rows.entries()) {
    if (lengths[b]! > time) {
      throw new ShapeError(`row ${b} has ${lengths[b]} tokens, the batch is padded to ${time}`, {
        row: b,
        length: lengths[b],
        padTo: time,
        help: 'Cut the row, or raise padTo.',
      });
    }
    let start = padSide === 'left' ? time - lengths[b]! : 0;
    for (const document of documents) {
      if (document.length === 0) throw new DataError(`row ${b} holds an empty document`, { row: b });
      checkIds(document, { vocabularySize, where: `row ${b}` });
      for (const [i, id] of document.entries()) {
        const at = b * time + start + i;
        ids[at] = id;
        from[at] = start;
        to[at] = start + i + 1;
        positions[at] = i;
      }
      start += document.length;
    }
  }
  const shape: [number, number] = [rows.length, time];
  return {
    tokenIds: tensor2d(ids, shape, 'int32'),
    keysFrom: tensor2d(from, shape, 'int32'),
    keysTo: tensor2d(to, shape, 'int32'),
    positions,
  };
}

/** Throws DataError for the first id that is not in the vocabulary: devices read garbage or zeros there instead of failing. */
export function checkIds(ids: ArrayLike<number>, { vocabularySize, where }: { vocabularySize: number; where: string }): void {
  for (let i = 0; i < ids.length; i++) {
    const id = ids[i]!;
    if (Number.isInteger(id) && id >= 0 && id < vocabularySize) continue;
    throw new DataError(`${where}: token id ${id} at ${i} is outside the vocabulary [0, ${vocabularySize})`, {
      id,
      at: i,
      vocabularySize,
      help: 'Encode the text with the tokenizer of this model; ignored targets (-100) belong into labels, not into ids.',
    });
  }
}

/** int32 [batch, time] ids of a batch. */
export function tokenIdsOf(batch: Batch): Tensor2D {
  const ids = batch['tokenIds'];
  if (ids === undefined || !('dtype' in ids) || ids.dtype !== 'int32' || ids.rank !== 2) {
    throw new DataError('the batch has no tokenIds, int32 [batch, time]', {
      fields: Object.keys(batch),
      help: 'Build it with tokenBatch().',
    });
  }
  return ids as Tensor2D;
}

export interface KeyBounds {
  readonly from: Tensor2D;
  readonly to: Tensor2D;
}

/**
 * Which keys each query sees, int32 [batch, time] each, new tensors: the batch's keysFrom and keysTo, or all keys up to its own.
 * @param options `past` cached keys come before the batch's own (the bounds of the batch count from the first cached one);
 *   `window` keys at most, the query's own included
 */
export function batchBounds(batch: Batch, { past = 0, window }: { past?: number; window?: number | undefined } = {}): KeyBounds {
  const [rows, time] = tokenIdsOf(batch).shape;
  const own = tile(reshape(range(past, past + time, 1, 'int32'), [1, time]), [rows, 1]) as Tensor2D;
  const from = boundOf(batch, 'keysFrom', [rows, time]) ?? (zeros([rows, time], 'int32') as Tensor2D);
  const to = boundOf(batch, 'keysTo', [rows, time]) ?? add(own, scalarInt(1));
  return { from: window === undefined ? from : (maximum(from, add(own, scalarInt(1 - window))) as Tensor2D), to: to as Tensor2D };
}

const scalarInt = (value: number): Tensor => reshape(tensor2d([[value]], [1, 1], 'int32'), []);

function boundOf(batch: Batch, field: 'keysFrom' | 'keysTo', shape: readonly [number, number]): Tensor2D | undefined {
  const bound = batch[field];
  if (bound === undefined) return undefined;
  if (!('dtype' in bound)) return tensor2d([...bound], [...shape], 'int32');
  if (bound.shape.join() === shape.join() && bound.dtype === 'int32') return bound.clone() as Tensor2D;
  throw new ShapeError(`${field} must be int32 [${shape}], got ${bound.dtype} [${bound.shape}]`, {
    field,
    expected: shape,
    given: bound.shape,
  });
}
