import { openMemoryLedger, tidy } from '@niwaki/tensor';
import type { BackpropOptions } from './backprop.ts';
import type { Turn } from './estimator.ts';
import { headBytes } from './head.ts';
import type { Pass } from './pass.ts';
import { differentiates } from './route.ts';

/** What the records of stages may take: bytes of their own, or what is left of a bound on all tensors there are. */
export interface Room {
  readonly keepBytes: number;
  readonly memoryBudget?: number;
}

export interface Records {
  /** Runs a stage, recorded where a record could stay; drops the earliest records while there is no room for all. */
  forward(s: number): void;
  dispose(): void;
}

/**
 * The last stages' records stay: their backward comes first, so that they are gone when the earlier stages are computed
 * again, and the peak is that of the moment when the forward ends.
 */
export function createRecords(pass: Pass, turn: Turn, { room, chunkBytes }: BackpropOptions & { room: Room }): Records {
  const { keepBytes, memoryBudget } = room;
  // tfjs's own counter takes what a record shares with the streams for a copy.
  const ledger = openMemoryLedger();
  const kept: { readonly s: number; readonly bytes: number }[] = [];
  let largest = 0;
  const gradients = [...turn.wrt].reduce((sum, { shape }) => sum + 4 * shape.reduce((product, side) => product * side, 1), 0);
  const head = headBytes(pass, turn, chunkBytes);
  // The backward of a stage holds about as much as its forward did at most.
  const fits = (): boolean =>
    memoryBudget === undefined
      ? kept.reduce((sum, { bytes }) => sum + bytes, 0) <= keepBytes
      : ledger.bytes() + gradients + head + largest <= memoryBudget;
  const never = memoryBudget === undefined ? keepBytes <= 0 : ledger.bytes() + gradients + head > memoryBudget;

  return {
    forward: (s) => {
      const record = differentiates(pass.route, s) && !never;
      const before = ledger.bytes();
      ledger.resetPeak();
      tidy(() => pass.forward(s, { record }));
      if (!record) return;
      const bytes = ledger.bytes() - before;
      largest = Math.max(largest, ledger.peak() - before);
      kept.push({ s, bytes });
      while (kept.length > 0 && !fits()) pass.forget(kept.shift()!.s);
    },
    dispose: () => ledger.dispose(),
  };
}
