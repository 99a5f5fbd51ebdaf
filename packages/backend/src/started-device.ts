/** A device that is loaded, with our kernels on it, and not yet current. */
export interface StartedDevice {
  /** The tfjs backend that carries it. */
  readonly backendName: string;
  readonly threads: number;
  /** WebGPU adapter or wasm build, in words. */
  readonly description: string;
}

/** What the names of our wasm backends begin with: a build and a number of threads follow. */
export const wasmName = 'niwaki-wasm';
