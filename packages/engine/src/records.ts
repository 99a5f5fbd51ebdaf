import { ConfigError, openMemoryLedger, tidy } from '@niwaki/tensor';
import type { BackpropOptions, BlockwiseOptions, Recompute } from './backprop.ts';
import type { Turn } from './estimator.ts';
import { headBytes } from './head.ts';
import type { Pass } from './pass.ts';
import { differentiates } from './route.ts';

/** What the records of stages may take: bytes of their own, or what is left of a bound on all tensors there are. */
export interface Room {
  readonly keepBytes: number;
  readonly memoryBudget?: number;
  /** Whether a record may stay as it is; else it is thinned. */
  readonly whole: boolean;
}

/**
 * The room that options ask for.
 * @throws ConfigError for an unknown `recompute`, and where more than one of the three is given
 */
export function roomOf({ recompute, keepBytes, memoryBudget }: BlockwiseOptions): Room {
  const given = Object.entries({ recompute, keepBytes, memoryBudget }).filter(([, value]) => value !== undefined);
  if (given.length > 1) {
    throw new ConfigError(`backprop: ${given.map(([name]) => name).join(' and ')} each say what stays; give one of them`, {
      ...Object.fromEntries(given),
      help: 'recompute is a choice for every block; keepBytes and memoryBudget choose for each block what fits.',
    });
  }
  if (keepBytes !== undefined) return { keepBytes, whole: true };
  if (memoryBudget !== undefined) return { keepBytes: Infinity, memoryBudget, whole: true };
  const level = recompute ?? 'full';
  if (!Object.hasOwn(levels, level)) {
    throw new ConfigError(`backprop: recompute is one of ${Object.keys(levels).join(', ')}; got '${level}'`, { recompute: level });
  }
  return levels[level];
}

const levels: Readonly<Record<Recompute, Room>> = {
  full: { keepBytes: 0, whole: true },
  selective: { keepBytes: Infinity, whole: false },
  none: { keepBytes: Infinity, whole: true },
};

export interface Records {
  /** Runs a stage, recorded where a record could stay. */
  forward(s: number): void;
  /** Lets go of what there is no room for. */
  makeRoom(): void;
  dispose(): void;
}

interface Kept {
  readonly s: number;
  bytes: number;
  whole: boolean;
}

/**
 * The last stages' records stay: their backward comes first, so that they are gone when the earlier stages are computed
 * again, and the peak is that of the moment when the forward ends. Room is made where it costs the least: the earliest whole
 * record but the last is thinned, and where there is none the earliest goes.
 */
export function createRecords(pass: Pass, turn: Turn, { room, chunkBytes }: BackpropOptions & { room: Room }): Records {
  const { keepBytes, memoryBudget } = room;
  // tfjs's own counter takes what a record shares with the streams for a copy.
  const ledger = openMemoryLedger();
  const kept: Kept[] = [];
  let largest = 0;
  const gradients = [...turn.wrt].reduce((sum, { shape }) => sum + 4 * shape.reduce((product, side) => product * side, 1), 0);
  const head = headBytes(pass, turn, chunkBytes);
  // The backward of a stage holds about as much as its forward did at most.
  const fits = (): boolean =>
    memoryBudget === undefined
      ? kept.reduce((sum, { bytes }) => sum + bytes, 0) <= keepBytes
      : ledger.bytes() + gradients + head + largest <= memoryBudget;
  const never = memoryBudget === undefined ? keepBytes <= 0 : ledger.bytes() + gradients + head > memoryBudget;
  const thin = (record: Kept): void => {
    const before = ledger.bytes();
    pass.thin(record.s);
    record.bytes -= before - ledger.bytes();
    record.whole = false;
  };
  const letGo = (): void => {
    // All but the last, which the backward pass would make whole at once.
    const whole = kept.slice(0, -1).find((record) => record.whole);
    if (whole === undefined) pass.forget(kept.shift()!.s);
    else thin(whole);
  };

  return {
    forward: (s) => {
      const record = differentiates(pass.route, s) && !never;
      const before = ledger.bytes();
      ledger.resetPeak();
      tidy(() => pass.forward(s, { record }));
      if (!record) return;
      largest = Math.max(largest, ledger.peak() - before);
      kept.push({ s, bytes: ledger.bytes() - before, whole: true });
    },
    makeRoom: () => {
      if (!room.whole) kept.filter(({ whole }) => whole).forEach(thin);
      while (kept.length > 0 && !fits()) letGo();
    },
    dispose: () => ledger.dispose(),
  };
}
