import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { util, type DataType, type TensorInfo } from '@tensorflow/tfjs-core';
import type { WasmExports } from './binary.ts';
import { onCacheLine } from './cache-line.ts';
import { singleThread, type Pool } from './pool.ts';
import { createRecorder, type WasmRecorder } from './recorder.ts';
import type { TfjsModule } from './tfjs-module.ts';

/** What a kernel of ours gets to work with: the heap, our compiled functions on it, and threads. */
export interface WasmDevice {
  readonly backendName: string;
  readonly backend: BackendWasm;
  readonly kernels: WasmExports;
  readonly relaxed: boolean;
  /** Threads that `run` may use. */
  readonly threads: number;
  readonly recorder: WasmRecorder;
  /** Address of a tensor's first byte in the heap. */
  address(tensor: TensorInfo): number;
  /** A new tensor, its entries not initialized. */
  output(shape: readonly number[], dtype?: DataType): TensorInfo;
  /** Frees a tensor that never left the kernel. */
  release(tensor: TensorInfo): void;
  /** Entries as the host sees them, to read or to write: what a recording cannot take down, so that it is none. */
  floats(tensor: TensorInfo): Float32Array;
  ints(tensor: TensorInfo): Int32Array;
  /** Entries of a stored value, to be read: what a kernel makes of them may hold for as long as no parameter is written. */
  stored(tensor: TensorInfo): Float32Array;
  /** Words of the heap; not to be kept over anything that allocates. In a recording: of the kernel's scratch alone, where they stay. */
  words(at: number, count: number): Uint32Array;
  bytes(at: number, count: number): Uint8Array;
  /** A kernel begins: the scratch of the one before is free. */
  begin(): void;
  /** Scratch that every thread of the current kernel sees; the same bytes again at the next call. */
  shared(bytes: number): number;
  /** Bytes that stay for as long as the device does, made when a name is first asked for. */
  constant(name: string, make: () => Uint8Array): number;
  /**
   * kernel(...args, first task, last task, scratch) over `tasks`; on other threads too when `work` (about one per
   * multiply-add) is worth waking them for.
   */
  run(kernel: string, args: readonly number[], options: { tasks: number; work: number; scratchBytes?: number }): void;
}

/** Below this many multiply-adds (some 20 µs on one thread) a call stays on the caller's thread. */
const parallelWork = 300_000;

export interface WasmDeviceParts {
  readonly backendName: string;
  readonly backend: BackendWasm;
  readonly module: TfjsModule;
  readonly kernels: WasmExports;
  readonly relaxed: boolean;
  readonly pool: Pool;
}

export function createWasmDevice({ backendName, backend, module, kernels, relaxed, pool }: WasmDeviceParts): WasmDevice {
  const alone = singleThread(kernels);
  const own = arena(module);
  const shared = arena(module);
  const constants = new Map<string, number>();
  const address = ({ dataId }: TensorInfo): number => backend.dataIdMap.get(dataId).memoryOffset;
  const recorder = createRecorder({ backend, module });
  return {
    backendName,
    backend,
    kernels,
    relaxed,
    threads: pool.threads,
    recorder,
    address,
    output: (shape, dtype = 'float32') => recorder.taking?.output(shape, dtype) ?? backend.makeOutput([...shape], dtype),
    release: ({ dataId }) => void backend.disposeData(dataId),
    floats: (tensor) => backend.typedArrayFromHeap(tensor) as Float32Array,
    ints: (tensor) => backend.typedArrayFromHeap(tensor) as Int32Array,
    stored: (tensor) => new Float32Array(module.HEAPU8.buffer, address(tensor), util.sizeFromShape(tensor.shape)),
    words: (at, count) => {
      recorder.taking?.touch(at, 4 * count);
      return new Uint32Array(module.HEAPU8.buffer, at, count);
    },
    bytes: (at, count) => {
      recorder.taking?.touch(at, count);
      return new Uint8Array(module.HEAPU8.buffer, at, count);
    },
    begin: () => recorder.taking?.begin(),
    shared: (bytes) => recorder.taking?.scratch(bytes) ?? shared(bytes),
    constant: (name, make) => {
      const known = constants.get(name);
      if (known !== undefined) return known;
      const bytes = make();
      const at = onCacheLine(module._malloc(bytes.length + 64));
      module.HEAPU8.set(bytes, at);
      constants.set(name, at);
      return at;
    },
    run: (kernel, args, { tasks, work, scratchBytes = 0 }) => {
      if (tasks <= 0) return;
      const chosen = tasks > 1 && work >= parallelWork ? pool : alone;
      // Scratch of a thread begins on its own cache line.
      const sides = { count: tasks, scratchBytes: onCacheLine(scratchBytes), scratch: own };
      chosen.run(kernel, args, sides);
      recorder.taking?.launched(() => chosen.run(kernel, args, sides));
    },
  };
}

/** Scratch that grows to the largest size asked for and stays. */
function arena(module: TfjsModule): (bytes: number) => number {
  let block = 0;
  let held = 0;
  return (bytes) => {
    if (bytes > held) {
      if (block !== 0) module._free(block);
      block = held = 0;
      block = module._malloc(bytes + 64);
      held = bytes;
    }
    return onCacheLine(block);
  };
}
