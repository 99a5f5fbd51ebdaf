import { DeviceError } from '@niwaki/tensor';
import { plain, plainShared, relaxed, relaxedShared } from '../generated/binaries.ts';
import { isNode } from './runtime.ts';

/** A compiled variant of our kernels. */
export interface Binary {
  readonly module: WebAssembly.Module;
  readonly relaxed: boolean;
}

export type WasmExports = Readonly<Record<string, (...values: number[]) => number>>;

/**
 * The fastest variant that this machine runs correctly.
 * @param options `shared`: the heap is shared memory; `relaxed: false`: never the relaxed instructions
 */
export async function loadBinary(options: { shared: boolean; relaxed?: boolean | undefined }): Promise<Binary> {
  if (options.relaxed !== false) {
    const bytes = decode(options.shared ? relaxedShared : relaxed);
    if (allowRelaxed(bytes)) {
      const module = await WebAssembly.compile(bytes);
      if (await passesSelfTest(module, options.shared)) return { module, relaxed: true };
    }
  }
  const bytes = decode(options.shared ? plainShared : plain);
  if (!WebAssembly.validate(bytes)) {
    throw new DeviceError('wasm: this engine lacks SIMD', {
      help: 'Use a browser of 2023 or later, or Node 20.19 or later; or the webgpu device.',
    });
  }
  return { module: await WebAssembly.compile(bytes), relaxed: false };
}

function decode(base64: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

function allowRelaxed(bytes: Uint8Array<ArrayBuffer>): boolean {
  if (WebAssembly.validate(bytes)) return true;
  // Node 20 has the instructions behind a flag; later ones have them on, and print an error at the flag.
  if (!isNode || Number(process.versions.node.split('.')[0]) >= 21) return false;
  process.getBuiltinModule('node:v8').setFlagsFromString('--experimental-wasm-relaxed-simd');
  return WebAssembly.validate(bytes);
}

async function passesSelfTest(module: WebAssembly.Module, shared: boolean): Promise<boolean> {
  const memory = new WebAssembly.Memory(shared ? { initial: 1, maximum: 65536, shared: true } : { initial: 1 });
  const { testMadd, testLookup, testDotBytes } = (await WebAssembly.instantiate(module, imports(memory))).exports as WasmExports;
  const products = [
    [1.5, 2, 0.25],
    [-3, 0.5, 8],
    [0, 7, -1],
  ] as const;
  return (
    products.every(([a, b, c]) => testMadd!(a, b, c) === a * b + c) &&
    Array.from({ length: 16 }, (_, i) => i).every((i) => testLookup!(i) === 100 + i) &&
    [-127, -1, 0, 127].every((a) => testDotBytes!(a, 127) === 254 * a)
  );
}

export const imports = (memory: WebAssembly.Memory): WebAssembly.Imports => ({ env: { memory, abort: () => {} } });
