import { DeviceError } from '@niwaki/tensor';
import { withSharedMemory } from './shared-memory.ts';
import { canShare, isNode, readBytes } from './runtime.ts';

/** The part of tfjs's emscripten module that we use. */
export interface TfjsModule {
  HEAPU8: Uint8Array;
  _malloc(bytes: number): number;
  _free(address: number): void;
  readonly asm: { readonly memory: WebAssembly.Memory };
  readonly wasmMemory?: WebAssembly.Memory;
  cwrap(name: string, returns: string | null, arguments_: readonly string[]): (...values: number[]) => number;
  tfjs: Record<string, (...values: number[]) => number>;
}

const binaryName = 'tfjs-backend-wasm-simd.wasm';

/** Where tfjs's binary lies: beside this module, unless the page serves it elsewhere. */
const binaryUrl = (wasmPaths: string | URL | undefined): URL =>
  wasmPaths === undefined
    ? new URL('../generated/tfjs-backend-wasm-simd.wasm', import.meta.url)
    : new URL(binaryName, new URL(wasmPaths, globalThis.location?.href ?? import.meta.url));

/**
 * tfjs's wasm module on a heap that workers can share.
 * @returns the module, and why its heap is not shared where it is not
 */
export async function loadTfjsModule({
  wasmPaths,
}: {
  wasmPaths?: string | URL | undefined;
}): Promise<{ module: TfjsModule; unshared?: string }> {
  const binary = await readBytes(binaryUrl(wasmPaths)).catch((cause: unknown) => cannotRead(String(cause), cause));
  // A development server answers a wrong address with a page.
  if (![0, 0x61, 0x73, 0x6d].every((byte, i) => binary[i] === byte)) cannotRead('it is not a wasm binary');
  if (!canShare()) {
    return {
      module: await instantiate(binary),
      unshared: 'the page is not cross-origin isolated (headers COOP: same-origin, COEP: require-corp)',
    };
  }
  const shared = withSharedMemory(binary);
  if (shared === undefined)
    return { module: await instantiate(binary), unshared: "tfjs's binary is not the one known to work with shared memory" };
  try {
    return { module: await instantiate(shared) };
  } catch (error) {
    return { module: await instantiate(binary), unshared: `tfjs's binary does not start on shared memory (${String(error)})` };
  }
}

function cannotRead(why: string, cause?: unknown): never {
  throw new DeviceError(`wasm: cannot read ${binaryName}: ${why}`, {
    cause,
    help: 'Serve that file of @tensorflow/tfjs-backend-wasm and say where with init({ wasmPaths }).',
  });
}

async function instantiate(wasmBinary: Uint8Array): Promise<TfjsModule> {
  const imported = (await import('@tensorflow/tfjs-backend-wasm/wasm-out/tfjs-backend-wasm.js')) as unknown as { default: unknown };
  const create = imported.default as (config: { wasmBinary: Uint8Array }) => Promise<TfjsModule>;
  const before = processListeners();
  const module = await create({ wasmBinary });
  removeNewListeners(before);
  module.tfjs = {
    init: module.cwrap('init', null, []),
    initWithThreadsCount: module.cwrap('init_with_threads_count', null, ['number']),
    getThreadsCount: module.cwrap('get_threads_count', 'number', []),
    registerTensor: module.cwrap('register_tensor', null, ['number', 'number', 'number']),
    disposeData: module.cwrap('dispose_data', null, ['number']),
    dispose: module.cwrap('dispose', null, []),
  };
  guardAllocation(module);
  return module;
}

/** A full heap is an error of ours, not a trap of tfjs writing at address 0. */
function guardAllocation(module: TfjsModule): void {
  // The export replaces itself at its first call: call it once before wrapping it.
  module._free(module._malloc(16));
  const allocate = module._malloc;
  module._malloc = (bytes) => {
    const address = bytes > 0xffff_ffff ? 0 : allocate(bytes) >>> 0;
    if (address === 0) {
      const heapBytes = module.HEAPU8.byteLength;
      throw new DeviceError(`wasm: no room for ${bytes} bytes (the heap holds ${heapBytes} and can grow to just under 4 GiB)`, {
        bytes,
        heapBytes,
        help: 'Dispose tensors, use a smaller batch or model, quantize the weights, or use the webgpu device.',
      });
    }
    return address;
  };
}

// Emscripten adds listeners that rethrow: any later error of the user would print its whole minified source.
const events = ['uncaughtException', 'unhandledRejection'] as const;
type Listener = (...values: unknown[]) => void;
const processListeners = (): readonly Listener[][] =>
  isNode ? events.map((event) => process.listeners(event as 'exit') as Listener[]) : [];

function removeNewListeners(before: readonly Listener[][]): void {
  processListeners().forEach((listeners, i) => {
    for (const listener of listeners) if (!before[i]!.includes(listener)) process.removeListener(events[i]!, listener);
  });
}
