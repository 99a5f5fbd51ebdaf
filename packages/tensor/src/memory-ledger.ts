import { engine } from '@tensorflow/tfjs-core';

export interface MemoryReport {
  /** Tensor data alive on the device. */
  readonly bytes: number;
  /** The most there was since the ledger was opened or the peak reset. */
  readonly peak: number;
  /** What each owner says it holds. */
  readonly owners: Readonly<Record<string, number>>;
  /** What no owner holds: activations, gradients, temporaries. */
  readonly rest: number;
  /** Resident memory of the process, where there is one. */
  readonly hostBytes?: number;
}

/** Who holds how many bytes of tensor data, and how many there were at most. */
export interface MemoryLedger {
  bytes(): number;
  peak(): number;
  /** The peak starts again from what is alive now. */
  resetPeak(): void;
  /** Names an owner: 'weights', 'adapters', 'state'. `held` is asked at each report; a name given again replaces the old one. */
  own(owner: string, held: () => number): void;
  report(): MemoryReport;
  /** Stops counting. */
  dispose(): void;
}

/**
 * Opens a ledger. Exact to the byte and to the moment: every buffer is counted when it comes and when it goes, once
 * however many tensors share it (tfjs's own counter counts a clone as a copy, and is looked at too late to see a peak).
 * Not counted is what a kernel needs within itself. Buffers that are older than the ledger are taken from tfjs's counter:
 * open it before the model is loaded.
 */
export function openMemoryLedger(): MemoryLedger {
  let live = engine().memory().numBytes;
  let peak = live;
  const owners = new Map<string, () => number>();
  const count: Listener = (change) => {
    live += change;
    if (live > peak) peak = live;
  };
  listen(count);
  return {
    bytes: () => live,
    peak: () => peak,
    resetPeak: () => {
      peak = live;
    },
    own: (owner, held) => {
      owners.set(owner, held);
    },
    report: () => {
      const held = [...owners].map(([owner, bytes]): [string, number] => [owner, bytes()]);
      const hostBytes = (globalThis as { process?: { memoryUsage?: () => { rss: number } } }).process?.memoryUsage?.().rss;
      return {
        bytes: live,
        peak,
        owners: Object.fromEntries(held),
        rest: live - held.reduce((sum, [, bytes]) => sum + bytes, 0),
        ...(hostBytes === undefined ? {} : { hostBytes }),
      };
    },
    dispose: () => unlisten(count),
  };
}

type Listener = (change: number) => void;
type Buffers = WeakMap<object, { readonly bytes: number }>;

const listeners = new Set<Listener>();

/** tfjs notes each buffer in one map when it comes and takes it out when it goes. */
const buffers = (): Buffers => engine().state.tensorInfo as unknown as Buffers;

function listen(listener: Listener): void {
  if (listeners.size === 0) {
    const map = buffers();
    const tell = (change: number): void => {
      for (const each of listeners) each(change);
    };
    // Own properties that hide the prototype's methods; deleting them puts everything back.
    map.set = (key, info) => {
      if (!map.has(key)) tell(info.bytes);
      return WeakMap.prototype.set.call(map, key, info) as Buffers;
    };
    map.delete = (key) => {
      const info = map.get(key);
      if (info !== undefined) tell(-info.bytes);
      return WeakMap.prototype.delete.call(map, key);
    };
  }
  listeners.add(listener);
}

function unlisten(listener: Listener): void {
  listeners.delete(listener);
  if (listeners.size > 0) return;
  const map = buffers() as Partial<Buffers>;
  delete map.set;
  delete map.delete;
}
