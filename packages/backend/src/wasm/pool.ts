/**
 * Threads that take tasks of one kernel call from a shared counter. The caller works too and never waits for a thread
 * that has not woken up: it waits only for those that have joined, so a busy machine costs no more than one thread would.
 *
 * Control words (int32): SEQUENCE is odd while a call is open; a thread that sees a new odd value announces itself in
 * ACTIVE, looks again, and takes tasks while there are any. Closing the call is one store; ACTIVE = 0 then says that all
 * results are written.
 */
import { DeviceError } from '@niwaki/tensor';
import { startThread, type Thread } from './runtime.ts';
import type { WasmExports } from './binary.ts';

export interface Tasks {
  readonly count: number;
  /** Bytes of scratch that each thread gets as the kernel's last argument. */
  readonly scratchBytes: number;
  /** Allocates scratch: the heap is not thread-safe, so the caller does it for all. */
  scratch(bytes: number): number;
}

export interface Pool {
  readonly threads: number;
  /** kernel(...args, first task, last task, scratch) over all tasks. */
  run(kernel: string, args: readonly number[], tasks: Tasks): void;
  close(): void;
}

const SEQUENCE = 0;
const ACTIVE = 1;
const NEXT = 2;
const COUNT = 3;
const KERNEL = 4;
const ARGUMENTS = 5;
const SCRATCH = 6;
const SCRATCH_BYTES = 7;
const ASLEEP = 8;
const TICKET = 9;
const FAILED = 10;
const SHARES = 11;
const argumentsAt = 64;
const controlBytes = 1024;

/** Polls of the sequence before a thread goes to sleep: about 50 µs, longer than the gap between two calls of a step. */
const spins = 20_000;

const threadSource = `
receive(({ module, memory, control, names, spins }) => {
  const kernels = new WebAssembly.Instance(module, { env: { memory, abort() {} } }).exports;
  const words = new Int32Array(control, 0, 16), values = new Float64Array(control, ${argumentsAt});
  post('ready');
  let seen = 0;
  for (;;) {
    let sequence, polls = 0;
    while ((sequence = Atomics.load(words, ${SEQUENCE})) === seen || (sequence & 1) === 0) {
      if (sequence < 0) return;
      if (++polls < spins) continue;
      Atomics.add(words, ${ASLEEP}, 1);
      Atomics.wait(words, ${SEQUENCE}, sequence);
      Atomics.sub(words, ${ASLEEP}, 1);
      polls = 0;
    }
    seen = sequence;
    Atomics.add(words, ${ACTIVE}, 1);
    if (Atomics.load(words, ${SEQUENCE}) === sequence) {
      const kernel = kernels[names[words[${KERNEL}]]];
      const args = Array.from(values.subarray(0, words[${ARGUMENTS}]));
      const count = words[${COUNT}], shares = words[${SHARES}];
      const scratch = (words[${SCRATCH}] >>> 0) + Atomics.add(words, ${TICKET}, 1) * words[${SCRATCH_BYTES}];
      try {
        for (let first = Atomics.load(words, ${NEXT}); first < count;) {
          const last = first + Math.max(1, Math.floor((count - first) / shares));
          const seen = Atomics.compareExchange(words, ${NEXT}, first, last);
          if (seen === first) kernel(...args, first, last, scratch);
          first = seen === first ? Atomics.load(words, ${NEXT}) : seen;
        }
      } catch {
        Atomics.store(words, ${FAILED}, 1);
      }
    }
    Atomics.sub(words, ${ACTIVE}, 1);
  }
});
`;

export interface PoolOptions {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  readonly kernels: WasmExports;
  readonly threads: number;
}

export const singleThread = (kernels: WasmExports): Pool => ({
  threads: 1,
  run: (kernel, args, { count, scratchBytes, scratch }) => void kernels[kernel]!(...args, 0, count, scratch(scratchBytes)),
  close: () => {},
});

/**
 * When other processes take the cores, a thread may lose its core in the middle of a task and the caller waits for it,
 * longer than the task itself would have taken. After such a wait some calls run alone, twice as many each time it happens
 * again. Results do not depend on who computes them.
 */
function backoff(): { alone(): boolean; report(times: { workedMs: number; waitedMs: number }): void } {
  const [least, most] = [8, 512];
  let rest = 0;
  let next = least;
  return {
    alone: () => rest > 0 && rest-- > 0,
    report: ({ workedMs, waitedMs }) => {
      // Twice, since the last of a few large tasks is waited for on a quiet machine too.
      const late = waitedMs > 1 && waitedMs > 2 * workedMs;
      if (late) rest = next;
      next = late ? Math.min(most, 2 * next) : Math.max(least, next / 2);
    },
  };
}

export async function startPool({ module, memory, kernels, threads }: PoolOptions): Promise<Pool> {
  const control = new SharedArrayBuffer(controlBytes);
  const words = new Int32Array(control, 0, 16);
  const values = new Float64Array(control, argumentsAt);
  const names = Object.keys(kernels);
  const ids = new Map(names.map((name, id) => [name, id]));
  const workers: Thread[] = [];
  const end = (): void => {
    for (const worker of workers) worker.end();
  };
  try {
    for (let i = 1; i < threads; i++) {
      const worker = startThread(threadSource);
      workers.push(worker);
      const ready = worker.ready();
      worker.post({ module, memory, control, names, spins });
      await ready;
    }
  } catch (error) {
    end();
    throw error;
  }

  let sequence = 0;
  const busy = backoff();
  return {
    threads,
    run: (kernel, args, { count, scratchBytes, scratch }) => {
      const own = scratch(scratchBytes * threads);
      const run = kernels[kernel]!;
      if (busy.alone()) {
        run(...args, 0, count, own);
        return;
      }
      const start = performance.now();
      words[KERNEL] = ids.get(kernel)!;
      words[ARGUMENTS] = args.length;
      values.set(args);
      words[COUNT] = count;
      // Of the tasks that are left a thread takes half of what is its own, down to single ones: few calls of the kernel, each over
      // neighbors in memory, and threads that end together.
      const shares = 2 * threads;
      words[SHARES] = shares;
      words[SCRATCH] = own;
      words[SCRATCH_BYTES] = scratchBytes;
      words[TICKET] = 1;
      Atomics.store(words, NEXT, 0);
      sequence = (sequence + 1) & 0x7fff_ffff;
      Atomics.store(words, SEQUENCE, sequence);
      if (Atomics.load(words, ASLEEP) > 0) Atomics.notify(words, SEQUENCE);
      for (let first = Atomics.load(words, NEXT); first < count;) {
        const last = first + Math.max(1, Math.floor((count - first) / shares));
        const seen = Atomics.compareExchange(words, NEXT, first, last);
        if (seen === first) run(...args, first, last, own);
        first = seen === first ? Atomics.load(words, NEXT) : seen;
      }
      sequence = (sequence + 1) & 0x7fff_ffff;
      Atomics.store(words, SEQUENCE, sequence);
      const done = performance.now();
      while (Atomics.load(words, ACTIVE) !== 0);
      busy.report({ workedMs: done - start, waitedMs: performance.now() - done });
      if (Atomics.exchange(words, FAILED, 0) !== 0)
        throw new DeviceError(`internal: wasm kernel ${kernel} trapped on another thread`, { kernel });
    },
    close: () => {
      Atomics.store(words, SEQUENCE, -1);
      Atomics.notify(words, SEQUENCE);
      end();
    },
  };
}
