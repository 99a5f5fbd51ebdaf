import { setBackend } from '@tensorflow/tfjs-core';
import { initCpu } from './cpu/init-cpu.ts';
import { registerGradients } from './gradients/register-gradients.ts';

export type Device = 'cpu' | 'wasm' | 'webgpu';

export interface InitOptions {
  /** 'auto' (default): webgpu on real hardware, else wasm, else cpu. */
  readonly device?: Device | 'auto';
  /** Worker threads of the wasm device, the main one included; default min(4, cores). */
  readonly threads?: number;
  /** Accept a WebGPU adapter that runs on the CPU (SwiftShader): correct, slow; for tests. */
  readonly software?: boolean;
}

/** What was taken and why. */
export interface DeviceInfo {
  readonly device: Device;
  readonly threads: number;
  readonly reason: string;
  /** WebGPU adapter or wasm build, in words. */
  readonly description: string;
}

/** Chooses a device, registers its kernels and makes it current. Calling it again with the same options does nothing. */
export async function init(options: InitOptions = {}): Promise<DeviceInfo> {
  void options;
  registerGradients();
  const { backendName, ...started } = await initCpu();
  await setBackend(backendName);
  return { device: 'cpu', reason: 'only device so far', ...started };
}
