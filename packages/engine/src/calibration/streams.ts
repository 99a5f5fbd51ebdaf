import { dispose, tensor2d, tidy, type Tensor, type Tensor2D } from '@niwaki/tensor';
import { createCall, type Batch, type Call } from '@niwaki/weights';
import type { Carry, Stage } from '@niwaki/nn';
import type { CountedRows } from './collector.ts';

/** One calibration batch: a call to run stages with, and which of its rows count. */
export interface CalibrationBatch {
  readonly call: Call;
  readonly rows?: CountedRows;
}

/**
 * Prepares batches once: padding, known by its empty range of keys, must not count in any statistic.
 * @returns the batches, and what frees their masks
 */
export async function calibrationBatches(
  batches: readonly Batch[],
): Promise<{ readonly batches: readonly CalibrationBatch[]; dispose(): void }> {
  const masks: Tensor[] = [];
  const prepared: CalibrationBatch[] = [];
  for (const batch of batches) {
    const call = createCall({ batch });
    const [from, to] = [await numbersOf(batch['keysFrom']), await numbersOf(batch['keysTo'])];
    if (from === undefined || to === undefined) {
      prepared.push({ call });
      continue;
    }
    const flags = Float32Array.from(from, (first, row) => (to[row]! > first ? 1 : 0));
    const count = flags.reduce((total, flag) => total + flag, 0);
    if (count === flags.length) prepared.push({ call, rows: { count } });
    else {
      const mask = tensor2d(flags, [flags.length, 1]);
      masks.push(mask);
      prepared.push({ call, rows: { count, mask } });
    }
  }
  return { batches: prepared, dispose: () => dispose(masks) };
}

async function numbersOf(field: Batch[string]): Promise<ArrayLike<number> | undefined> {
  return field !== undefined && 'dtype' in field ? field.data() : field;
}

/** The rows of x that count; a stage may run on other rows than the batch's tokens, all of which count then. */
export function rowsOf({ rows }: CalibrationBatch, x: Tensor2D): CountedRows {
  if (rows === undefined || (rows.mask !== undefined && rows.mask.shape[0] !== x.shape[0])) return { count: x.shape[0] };
  return rows.mask === undefined ? { count: x.shape[0] } : rows;
}

/** One stage; what it writes is the caller's. */
export const runStage = (stage: Stage, carry: Carry, call: Call): Carry => tidy(() => stage.run(carry, call));

/** Runs stages [from, to) on a carry that stays the caller's; what only they read is freed. The result is the caller's. */
export function runStages(stages: readonly Stage[], [from, to]: readonly [from: number, to: number], carry: Carry, call: Call): Carry {
  const given = new Set<Tensor>(Object.values(carry));
  let streams = carry;
  const written = new Set<Tensor>();
  try {
    for (let s = from; s < to; s++) {
      const out = runStage(stages[s]!, streams, call);
      for (const tensor of Object.values(out)) written.add(tensor);
      streams = { ...streams, ...out };
      drop(written, Object.values(streams));
    }
    // What went through untouched is given as a handle of its own, so that each carry can be freed by itself.
    const names = readFrom(stages, to);
    const result = Object.fromEntries(
      Object.entries(streams)
        .filter(([name]) => names.has(name))
        .map(([name, tensor]) => [name, given.has(tensor) ? tensor.clone() : tensor]),
    );
    drop(written, Object.values(result));
    return result;
  } catch (error) {
    drop(written, []);
    throw error;
  }
}

function drop(written: Set<Tensor>, live: readonly Tensor[]): void {
  for (const tensor of written) {
    if (live.includes(tensor)) continue;
    tensor.dispose();
    written.delete(tensor);
  }
}

/** Streams that a stage from `s` on reads, or, past the last one, what that one writes. */
function readFrom(stages: readonly Stage[], s: number): ReadonlySet<string> {
  const rest = stages.slice(s);
  return new Set(rest.length === 0 ? stages.at(-1)!.writes : rest.flatMap((stage) => stage.reads));
}
