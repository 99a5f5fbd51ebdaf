import { checkOptions, DataError } from '@niwaki/tensor';
import type { LanguageRow } from '@niwaki/engine';
import type { Sample } from './sample.ts';

/** One row of a batch, on the host. All arrays have the row's own length: padding is added by length, never by id. */
export interface Row extends LanguageRow {
  readonly ids: Int32Array;
  /** The id predicted at each position, or -1: the next token of the same document where it is learned. */
  readonly targets: Int32Array;
  /** First index of the document a position is in: attention and positions start there. */
  readonly starts: Int32Array;
}

export interface PackOptions {
  /** Tokens a row holds at most. */
  readonly context: number;
  /** true (default): several documents share a row, masked apart. false: one document a row. */
  readonly pack?: boolean;
  /**
   * What to do with a document longer than a row: 'split' it over rows, 'truncate' its end, or 'error'.
   * Default: 'split' for plain text, 'error' for chats and completions.
   */
  readonly long?: 'split' | 'truncate' | 'error';
}

export interface Packed {
  readonly rows: readonly Row[];
  /** Documents that had nothing to learn (cut off, or one token long). */
  readonly dropped: number;
}

/**
 * Lays samples out in rows. Plain text that may be split fills each row to the end; whole documents go to the fullest
 * open row that still has room (best fit), so that order is kept where it costs nothing.
 * @throws DataError for a document that is too long and may be neither split nor truncated, or when nothing is learned
 */
export function packSamples(samples: readonly Sample[], options: PackOptions): Packed {
  checkOptions('packSamples', options, ['context', 'pack', 'long']);
  const { context, pack = true, long } = options;
  const pieces: Sample[] = [];
  for (const sample of samples) {
    const rule = long ?? (sample.kind === 'text' ? 'split' : 'error');
    if (sample.ids.length <= context) pieces.push(sample);
    else if (rule === 'truncate') pieces.push(slice(sample, 0, context));
    else if (rule === 'split') for (let at = 0; at < sample.ids.length; at += context) pieces.push(slice(sample, at, at + context));
    else throw tooLong(sample, context);
  }
  const learned = pieces.filter((piece) => targetsOf(piece) > 0);
  const dropped = pieces.length - learned.length;
  if (learned.length === 0) {
    throw new DataError(`none of the ${samples.length} documents has a token to learn`, {
      documents: samples.length,
      context,
      help: 'A document needs two tokens; a chat needs an assistant turn inside the context.',
    });
  }
  return { rows: pack ? bestFit(learned, context) : learned.map((piece) => rowOf([piece])), dropped };
}

/** Tokens of a sample that are predicted: the first never is. */
export function targetsOf({ learn }: Sample): number {
  let count = 0;
  for (let i = 1; i < learn.length; i++) count += learn[i]!;
  return count;
}

function bestFit(pieces: readonly Sample[], context: number): Row[] {
  const rows: Sample[][] = [];
  // Open rows by the room they have left; a document goes to the least room that is enough.
  const open: number[][] = Array.from({ length: context + 1 }, () => []);
  for (const piece of pieces) {
    const size = piece.ids.length;
    let room = size;
    while (room <= context && open[room]!.length === 0) room++;
    if (room > context) {
      rows.push([piece]);
      open[context - size]!.push(rows.length - 1);
    } else {
      const row = open[room]!.shift()!;
      rows[row]!.push(piece);
      open[room - size]!.push(row);
    }
    // Two tokens are the least that teaches anything.
    open[0]!.length = 0;
    open[1]!.length = 0;
  }
  return rows.map(rowOf);
}

/** One row of documents side by side. */
export function rowOf(samples: readonly Sample[]): Row {
  const length = samples.reduce((sum, { ids }) => sum + ids.length, 0);
  const row = { ids: new Int32Array(length), targets: new Int32Array(length).fill(-1), starts: new Int32Array(length) };
  let start = 0;
  for (const { ids, learn } of samples) {
    row.ids.set(ids, start);
    for (let i = 0; i < ids.length; i++) {
      row.starts[start + i] = start;
      // The last token predicts nothing: what follows is another document, or padding.
      if (i + 1 < ids.length && learn[i + 1] === 1) row.targets[start + i] = ids[i + 1]!;
    }
    start += ids.length;
  }
  return row;
}

const slice = (sample: Sample, from: number, to: number): Sample => ({
  ...sample,
  ids: sample.ids.slice(from, to),
  learn: sample.learn.slice(from, to),
});

function tooLong({ ids, kind, line }: Sample, context: number): DataError {
  const where = line === undefined ? 'a document' : `the document of line ${line}`;
  return new DataError(`${where} has ${ids.length} tokens, the context is ${context}`, {
    tokens: ids.length,
    context,
    kind,
    line,
    help: `Raise context, or ask for long documents to be cut (long: 'truncate').`,
  });
}
