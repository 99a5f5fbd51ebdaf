/**
 * Calls of compiled kernels, ours and tfjs's, taken down as they are made. Their tensors and scratch lie in memory that the
 * recording holds until it is freed, so that the same calls with the same addresses compute the same again. What JavaScript
 * itself reads or writes in the heap would not come back, and ends the recording: tfjs's backend hands out no view without
 * telling, and the device none of more than a kernel's own scratch.
 */
import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { util, type DataType, type TensorInfo } from '@tensorflow/tfjs-core';
import type { Recorder } from '@niwaki/tensor';
import { onCacheLine } from './cache-line.ts';
import type { TfjsModule } from './tfjs-module.ts';

export interface WasmRecorder extends Recorder {
  /** While something is taken down. */
  readonly taking: DeviceTaking | undefined;
}

/** What the device tells of. */
export interface DeviceTaking {
  /** A kernel begins. */
  begin(): void;
  output(shape: readonly number[], dtype: DataType): TensorInfo;
  /** Scratch that this kernel alone has, now and at each replay. */
  scratch(bytes: number): number;
  /** The host looks at memory: at the kernel's scratch it may, to write what stays there. */
  touch(at: number, bytes: number): void;
  launched(again: () => void): void;
}

export function createRecorder({ backend, module }: { readonly backend: BackendWasm; readonly module: TfjsModule }): WasmRecorder {
  let taking: DeviceTaking | undefined;
  takeDownCalls(module, () => taking);
  const offsetOf = ({ dataId }: TensorInfo): number => backend.dataIdMap.get(dataId).memoryOffset;
  return {
    get taking() {
      return taking;
    },
    like: ({ shape, dtype }) => backend.makeOutput([...shape], dtype),
    overwrite: (target, values) => {
      const from = offsetOf(values);
      module.HEAPU8.copyWithin(offsetOf(target), from, from + bytesOf(values));
    },
    begin: () => {
      const memory = createMemory(module);
      const steps: (() => void)[] = [];
      /** Tensors of this recording that somebody holds, and the numbers by which tfjs's calls know those that nobody does. */
      const live = new Map<TensorInfo['dataId'], number>();
      const numbers: number[] = [];
      let broken = false;
      const breakOff = (): undefined => {
        broken = true;
      };
      let scratch: { readonly at: number; readonly bytes: number } | undefined;
      const tensorAt = (at: number, shape: readonly number[], dtype: DataType): TensorInfo => {
        const made = backend.makeOutput([...shape], dtype, at);
        live.set(made.dataId, at);
        return made;
      };
      const output: DeviceTaking['output'] = (shape, dtype) => tensorAt(memory.take(bytesOf({ shape, dtype })), shape, dtype);
      taking = {
        begin: () => {
          scratch = undefined;
        },
        output,
        scratch: (bytes) => {
          if (scratch === undefined || scratch.bytes < bytes) scratch = { at: onCacheLine(memory.pin(bytes + 64)), bytes };
          return scratch.at;
        },
        touch: (at, bytes) => {
          if (scratch === undefined || at < scratch.at || at + bytes > scratch.at + scratch.bytes) breakOff();
        },
        launched: (again) => void steps.push(again),
      };
      const restore = replaced(backend, {
        readSync: breakOff,
        typedArrayFromHeap: breakOff,
        write: (values, shape, dtype) => {
          if (dtype === 'string') return undefined;
          if (values == null) return output(shape, dtype).dataId;
          // A constant: no later result may lie where it does.
          const { buffer, byteOffset } = values as unknown as Uint8Array;
          const bytes = bytesOf({ shape, dtype });
          const at = memory.pin(bytes);
          module.HEAPU8.set(new Uint8Array(buffer, byteOffset, bytes), at);
          return tensorAt(at, shape, dtype).dataId;
        },
        disposeData: (dataId, force = false) => {
          const at = live.get(dataId);
          const last = force || backend.refCount(dataId) === 1;
          // What was there before and goes away now would not be there at a replay.
          if (at === undefined && last) breakOff();
          if (at === undefined || !last) return undefined;
          live.delete(dataId);
          memory.giveBack(at);
          numbers.push(backend.dataIdMap.get(dataId).id);
          backend.dataIdMap.delete(dataId);
          return true;
        },
      });
      const free = (): void => {
        for (const number of numbers.splice(0)) module.tfjs['disposeData']!(number);
        memory.free();
      };
      return {
        breakOff,
        end: (left) => {
          restore();
          taking = undefined;
          // From here on they are tensors like any other, which free their memory themselves.
          for (const at of live.values()) memory.release(at);
          const kept = new Set(left.map(({ dataId }) => dataId));
          if (!broken && [...live.keys()].every((dataId) => kept.has(dataId))) {
            const run = (): void => {
              for (const step of steps) step();
            };
            return { bytes: memory.bytes, run, free };
          }
          free();
          return undefined;
        },
      };
    },
  };
}

/** Has what tfjs's kernels call told of: they look their functions up when the backend starts. */
function takeDownCalls(module: TfjsModule, taking: () => DeviceTaking | undefined): void {
  const lookUp = module.cwrap.bind(module);
  module.cwrap = (...signature) => {
    const call = lookUp(...signature);
    return (...values) => {
      const result = call(...values);
      taking()?.launched(() => void call(...values));
      return result;
    };
  };
}

interface Memory {
  /** Bytes taken in all, those released since included. */
  readonly bytes: number;
  /** A block that is free again after `giveBack`, for another of that size: within a recording all happens in one order. */
  take(bytes: number): number;
  giveBack(at: number): void;
  /** A block that is never given out again. */
  pin(bytes: number): number;
  /** The block is no longer this memory's. */
  release(at: number): void;
  free(): void;
}

function createMemory(module: TfjsModule): Memory {
  const sizes = new Map<number, number>();
  const unused = new Map<number, number[]>();
  const pinned = new Set<number>();
  let total = 0;
  const allocate = (bytes: number): number => {
    const at = module._malloc(bytes);
    sizes.set(at, bytes);
    total += bytes;
    return at;
  };
  return {
    get bytes() {
      return total;
    },
    take: (bytes) => unused.get(bytes)?.pop() ?? allocate(bytes),
    giveBack: (at) => {
      if (pinned.has(at)) return;
      const bytes = sizes.get(at)!;
      const same = unused.get(bytes);
      if (same === undefined) unused.set(bytes, [at]);
      else same.push(at);
    },
    pin: (bytes) => {
      const at = allocate(bytes);
      pinned.add(at);
      return at;
    },
    release: (at) => void sizes.delete(at),
    free: () => {
      for (const at of sizes.keys()) module._free(at);
      sizes.clear();
    },
  };
}

const bytesOf = ({ shape, dtype }: { readonly shape: readonly number[]; readonly dtype: DataType }): number =>
  util.sizeFromShape([...shape]) * util.bytesPerElement(dtype);

type Method = 'readSync' | 'typedArrayFromHeap' | 'write' | 'disposeData';
type Before = { [name in Method]: (...values: Parameters<BackendWasm[name]>) => ReturnType<BackendWasm[name]> | undefined | void };

/** Puts something in front of methods of a backend, until the result is called: where it gives a result, that is the method's. */
function replaced(backend: BackendWasm, before: Before): () => void {
  const target = backend as unknown as Record<string, (...values: unknown[]) => unknown>;
  const present = Object.getOwnPropertyDescriptors(target);
  for (const [name, first] of Object.entries(before) as [string, (...values: unknown[]) => unknown][]) {
    const own = target[name]!.bind(backend);
    target[name] = (...values) => first(...values) ?? own(...values);
  }
  return () => {
    // What was put on the instance hides the class's own.
    for (const name of Object.keys(before)) {
      delete target[name];
      if (name in present) Object.defineProperty(target, name, present[name]!);
    }
  };
}
