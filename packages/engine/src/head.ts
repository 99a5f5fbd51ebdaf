import {
  add,
  concat,
  ConfigError,
  dispose,
  fill,
  gather,
  keep,
  mul,
  recordTape,
  reshape,
  scalar,
  scatterND,
  slice,
  sum,
  tidy,
  zerosLike,
  type Parameter,
  type Scalar,
  type Sink,
  type Tensor,
  type Tensor1D,
} from '@niwaki/tensor';
import type { Call } from '@niwaki/weights';
import { pickRows, rowStreams, type Carry, type Stage } from '@niwaki/nn';
import type { Turn } from './estimator.ts';
import type { Pass } from './pass.ts';

/** Places [from, from + count) in the list of rows that the objective scores. */
interface Chunk {
  readonly part: number;
  readonly from: number;
  readonly count: number;
}

export const defaultChunkBytes: number = 16 * 2 ** 20;

/**
 * The objective's loss and its gradient through the last stage, a chunk of rows at a time and both in one pass: a chunk's
 * logits become their own gradient where they lie (`crossEntropy`), and are gone before the next chunk's are made; a trained
 * matrix's gradient is one sum to which chunks add (`Call.takeGradient`). Leaves the streams' cotangents in the pass and
 * pushes what is final.
 * @returns the loss, scaled, the caller's
 */
export async function backwardHead(
  pass: Pass,
  turn: Turn,
  sink: Sink,
  { chunkBytes = defaultChunkBytes }: { chunkBytes?: number },
): Promise<Scalar> {
  const head = createHead(pass, turn);
  try {
    const chunks = chunksOf(head.rows, chunkSize(pass, turn, chunkBytes).rows);
    if (turn.objective.reduce !== undefined) tidy(() => head.reduce(chunks));
    for (const chunk of chunks) {
      tidy(() => head.backward(chunk));
      await turn.between?.();
    }
    turn.onLoss?.(head.loss());
    tidy(() => head.finish(sink));
    await turn.between?.();
    return head.loss().clone();
  } finally {
    head.dispose();
  }
}

/**
 * Rows of a chunk and logits of a row: as many rows as fit their logits in the budget. Every chunk reads and writes the whole
 * gradient of a trained output matrix, so there it has at least a quarter as many rows as the matrix is wide, and its logits
 * weigh a quarter of that gradient: with an eighth a head of 49152 by 576 takes 4% longer on wasm, with a sixteenth 15%.
 */
function chunkSize({ route }: Pass, { model, wrt }: Turn, chunkBytes: number): { readonly rows: number; readonly outputs: number } {
  const weights = route.stages[route.head]!.sites.flatMap(({ weight }) => (weight === undefined ? [] : [weight]));
  const width = Math.max(1, ...weights.map(({ shape }) => shape[0]));
  const outputs = weights.length > 0 ? width : model.info.vocabularySize;
  const trained = weights.filter(({ parts }) => Object.values(parts).some((part) => wrt.has(part)));
  return { rows: Math.max(1, Math.floor(chunkBytes / 4 / outputs), ...trained.map(({ shape }) => Math.ceil(shape[1] / 4))), outputs };
}

/** Bytes of the logits that the head of a micro-batch holds at once; they are their own gradient later. */
export function headBytes(pass: Pass, turn: Turn, chunkBytes: number = defaultChunkBytes): number {
  const { rows, outputs } = chunkSize(pass, turn, chunkBytes);
  return 4 * outputs * Math.min(rows, turn.objective.weight(turn.batch));
}

/** Chunks of nearly equal size: shapes repeat, which is what a device's buffer pool needs. */
function chunksOf(rows: number, most: number): readonly Chunk[] {
  const size = Math.ceil(rows / Math.ceil(rows / most));
  return Array.from({ length: Math.ceil(rows / size) }, (_, part) => ({
    part,
    from: part * size,
    count: Math.min(size, rows - part * size),
  }));
}

interface Head {
  /** Rows that the objective scores. */
  readonly rows: number;
  /** The whole list's scores through the objective's own reduction: the loss and the slope of each row. */
  reduce(chunks: readonly Chunk[]): void;
  backward(chunk: Chunk): void;
  loss(): Scalar;
  finish(sink: Sink): void;
  dispose(): void;
}

function createHead(pass: Pass, { objective, batch, scale }: Turn): Head {
  const s = pass.route.head;
  const stage = pass.route.stages[s]!;
  const entering = pass.entering(s);
  const { index, target, everyRow = false } = tidy(() => ({ ...objective.rows(batch) }));
  const own = [index, target].filter((tensor) => !Object.values(batch).includes(tensor));
  own.forEach(keep);
  checkRows(stage, entering, pass.wanted(s));
  const parts = new Map<string, Tensor[]>(pass.wanted(s).map((name) => [name, []]));
  const gradients = new Map<Parameter, Tensor>();
  const scored: Tensor1D[] = [];
  let loss: Scalar | undefined;
  let slope: Tensor1D | undefined;

  const whole = ({ count }: Chunk): boolean => count === index.size;
  const cut = (list: Tensor1D, chunk: Chunk): Tensor1D => (whole(chunk) ? list : slice(list, [chunk.from], [chunk.count]));
  const rowsOf = (value: Tensor, chunk: Chunk): Tensor => {
    if (!everyRow) return gather(value, cut(index, chunk));
    return whole(chunk) ? value : slice(value, [chunk.from, ...value.shape.slice(1).map(() => 0)], [chunk.count, ...value.shape.slice(1)]);
  };
  const inputsOf = (chunk: Chunk): Carry => pickRows(stage, entering, (stream) => rowsOf(stream, chunk));
  const addTo = (before: Tensor | undefined, value: Tensor): Tensor => {
    const total = keep(before === undefined ? value : add(before, value));
    if (before !== undefined) dispose([before, value]);
    return total;
  };

  return {
    rows: index.size,
    reduce: (chunks) => {
      const scores = concat(
        chunks.map((chunk) =>
          tidy(() => pass.run(s, (call) => objective.score(stage.run(inputsOf(chunk), call), cut(target, chunk)), chunk)),
        ),
      );
      const tape = recordTape(() => objective.reduce!(scores, batch));
      slope = keep(tape.pull([scores], [{ of: tape.value, value: scalar(scale) }])[0] ?? zerosLike(scores)) as Tensor1D;
      loss = keep(mul(tape.value, scale) as Scalar);
    },
    backward: (chunk) => {
      // Outside the record: gradients read the targets after its tidy has ended.
      const [inputs, targets] = [inputsOf(chunk), cut(target, chunk)];
      const forward = (call: Call): Carry => ({ scores: objective.score(stage.run(inputs, call), targets) });
      const { tape, watched } = pass.record(s, forward, { part: chunk.part, gradients });
      const { scores } = tape.value as { scores: Tensor1D };
      const names = [...parts.keys()];
      const seed = slope === undefined ? fill([chunk.count], scale) : cut(slope, chunk);
      const found = tape.pull([...names.map((name) => inputs[name]!), ...watched.values()], [{ of: scores, value: seed }]);
      for (const [i, name] of names.entries()) parts.get(name)!.push(keep(found[i] ?? zerosLike(inputs[name]!)));
      [...watched.keys()].forEach((parameter, i) => {
        const value = found[names.length + i];
        if (value !== undefined) gradients.set(parameter, addTo(gradients.get(parameter), value));
      });
      if (slope === undefined) scored.push(keep(scores));
    },
    loss: () => (loss ??= keep(tidy(() => mul(sum(concat(scored)), scale) as Scalar))),
    finish: (sink) => {
      for (const [name, list] of parts) {
        const rows = list.length === 1 ? list[0]! : concat(list);
        const { shape } = entering[name]!;
        pass.addCotangent(name, everyRow ? rows : scatterND(reshape(index, [index.size, 1]), rows, [...shape]));
        dispose(list.filter((part) => part !== rows || !everyRow));
      }
      parts.clear();
      for (const parameter of pass.route.trained[s]!) {
        const value = gradients.get(parameter);
        gradients.delete(parameter);
        pass.addGradient(s, parameter, value, sink);
      }
    },
    dispose: () =>
      dispose([
        ...own,
        ...[...parts.values()].flat(),
        ...gradients.values(),
        ...scored,
        ...(loss === undefined ? [] : [loss]),
        ...(slope === undefined ? [] : [slope]),
      ]),
  };
}

/** Only the scored rows go through the head: what gradients go into must have a row for each row of 'h'. */
function checkRows(stage: Stage, entering: Carry, wanted: readonly string[]): void {
  const h = entering['h'];
  if (h === undefined)
    throw new ConfigError(`the last stage '${stage.path}' does not read the stream 'h', whose rows the objective scores`, {
      stage: stage.path,
      reads: stage.reads,
    });
  const names = rowStreams(stage, entering);
  const other = wanted.find((name) => !names.includes(name));
  if (other === undefined) return;
  throw new ConfigError(
    `the last stage '${stage.path}' reads '${other}' [${entering[other]!.shape}], which has no row for each of the ${h.shape[0]} rows of 'h'`,
    {
      stage: stage.path,
      stream: other,
    },
  );
}
