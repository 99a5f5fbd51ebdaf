import { copyRegisteredKernels, registerBackend } from '@tensorflow/tfjs-core';
import { addRecorder } from '@niwaki/tensor';
import { wasmName, type StartedDevice } from '../started-device.ts';
import { replaceKernel } from '../replace-kernel.ts';
import { imports, loadBinary, type WasmExports } from './binary.ts';
import { createWasmDevice, type WasmDevice } from './device.ts';
import { kernels } from './kernels/index.ts';
import { singleThread, startPool, type Pool } from './pool.ts';
import { cores, isNode } from './runtime.ts';
import { loadTfjsModule } from './tfjs-module.ts';

export interface WasmOptions {
  /** Threads, the caller's included. */
  readonly threads?: number | undefined;
  /** Folder or URL prefix that serves tfjs's wasm binary; by default the copy beside this package's code. */
  readonly wasmPaths?: string | URL | undefined;
  /** false: never the relaxed instructions, whose last bits depend on the machine. */
  readonly relaxed?: boolean | undefined;
}

/** Starts tfjs's wasm device under a name of its own, on a heap that workers share, with our kernels on it. Does not make it current. */
export async function initWasm(options: WasmOptions = {}): Promise<StartedDevice> {
  const threads = options.threads ?? defaultThreads();
  const backendName = `${wasmName}${options.relaxed === false ? '-plain' : ''}${threads === 1 ? '' : `-${threads}`}`;
  started[backendName] ??= start({ ...options, threads, backendName }).catch((error: unknown) => {
    delete started[backendName];
    throw error;
  });
  return started[backendName];
}

const started: Record<string, Promise<StartedDevice & { device: WasmDevice }>> = {};

function defaultThreads(): number {
  const asked = isNode ? Number(process.env['NIWAKI_THREADS']) : 0;
  return asked >= 1 ? Math.floor(asked) : Math.min(4, cores());
}

async function start({
  threads,
  backendName,
  wasmPaths,
  relaxed,
}: WasmOptions & { threads: number; backendName: string }): Promise<StartedDevice & { device: WasmDevice }> {
  const { BackendWasm } = await import('@tensorflow/tfjs-backend-wasm');
  const { module, unshared } = await loadTfjsModule({ wasmPaths });
  const memory = module.wasmMemory ?? module.asm.memory;
  const binary = await loadBinary({ shared: unshared === undefined, relaxed });
  const exports = (await WebAssembly.instantiate(binary.module, imports(memory))).exports as WasmExports;
  const { pool, alone } = await poolFor({ module: binary.module, memory, kernels: exports, threads, unshared });

  const backend = new BackendWasm(module as unknown as ConstructorParameters<typeof BackendWasm>[0]);
  const device = createWasmDevice({ backendName, backend, module, kernels: exports, relaxed: binary.relaxed, pool });
  registerBackend(backendName, () => backend, 3);
  addRecorder(backend, device.recorder);
  copyRegisteredKernels('wasm', backendName);
  for (const kernel of kernels(device)) replaceKernel(kernel);
  const build = binary.relaxed ? 'relaxed SIMD' : 'SIMD';
  const description = `tfjs wasm with kernels for ${build}, ${pool.threads} thread${pool.threads === 1 ? '' : 's'}${alone === undefined ? '' : ` (${alone})`}`;
  return { backendName, threads: pool.threads, description, device };
}

interface PoolChoice {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  readonly kernels: WasmExports;
  readonly threads: number;
  readonly unshared: string | undefined;
}

/** Threads as asked for, or one and the reason. */
async function poolFor({ unshared, ...options }: PoolChoice): Promise<{ pool: Pool; alone?: string }> {
  if (options.threads === 1) return { pool: singleThread(options.kernels) };
  if (unshared !== undefined) return { pool: singleThread(options.kernels), alone: `one thread: ${unshared}` };
  try {
    return { pool: await startPool(options) };
  } catch (error) {
    return { pool: singleThread(options.kernels), alone: `one thread: workers do not start (${String(error)})` };
  }
}
