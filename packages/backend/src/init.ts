import { setBackend } from '@tensorflow/tfjs-core';
import { checkOptions, ConfigError, DeviceError } from '@niwaki/tensor';
import { registerGradients } from './gradients/register-gradients.ts';
import type { StartedDevice } from './started-device.ts';

export type Device = 'cpu' | 'wasm' | 'webgpu';

export interface InitOptions {
  /** 'auto' (default): webgpu on real hardware, else wasm, else cpu. */
  readonly device?: Device | 'auto';
  /** Threads of the wasm device, the main one included; default min(4, cores), or NIWAKI_THREADS. */
  readonly threads?: number;
  /** Accept a WebGPU adapter that runs on the CPU (SwiftShader): correct, slow; for tests. */
  readonly software?: boolean;
  /** In a page: the folder that serves tfjs-backend-wasm-simd.wasm, where the bundler does not find this package's copy. */
  readonly wasmPaths?: string | URL;
}

/** What was taken and why. */
export interface DeviceInfo {
  readonly device: Device;
  readonly threads: number;
  readonly reason: string;
  /** WebGPU adapter or wasm build, in words. */
  readonly description: string;
}

// A device is loaded only when it is asked for; each throws a DeviceError with the reason where it cannot start.
const starters: Readonly<Record<Device, (options: InitOptions) => Promise<StartedDevice>>> = {
  webgpu: async ({ software }) => (await import('./webgpu/init-webgpu.ts')).initWebgpu({ software }),
  wasm: async ({ threads, wasmPaths }) => (await import('./wasm/init-wasm.ts')).initWasm({ threads, wasmPaths }),
  cpu: async () => (await import('./cpu/init-cpu.ts')).initCpu(),
};

const preference: readonly Device[] = ['webgpu', 'wasm', 'cpu'];

/**
 * Chooses a device, registers its kernels and makes it current. Calling it again with the same options does nothing.
 * @throws ConfigError for an unknown device or thread count, DeviceError where the device cannot start
 */
export async function init(options: InitOptions = {}): Promise<DeviceInfo> {
  checkOptions('init', options, ['device', 'threads', 'software', 'wasmPaths']);
  const { device = 'auto', threads } = options;
  if (device !== 'auto' && !Object.hasOwn(starters, device)) {
    throw new ConfigError(`init: unknown device '${device}'`, {
      device,
      help: `Use one of 'auto', ${preference.map((d) => `'${d}'`).join(', ')}.`,
    });
  }
  if (threads !== undefined && !(Number.isInteger(threads) && threads >= 1 && threads <= 64)) {
    throw new ConfigError(`init: threads must be a whole number from 1 to 64, got ${threads}`, { threads });
  }
  if (device !== 'auto') return take(device, await starters[device](options), 'asked for');
  const refused: string[] = [];
  for (const candidate of preference) {
    try {
      const started = await starters[candidate](options);
      return await take(candidate, started, refused.length === 0 ? 'first choice' : refused.join('; '));
    } catch (error) {
      if (!DeviceError.isInstance(error)) throw error;
      refused.push(error.message.split('\n')[0]!);
    }
  }
  throw new DeviceError(`no device starts: ${refused.join('; ')}`, { refused });
}

async function take(device: Device, { backendName, threads, description }: StartedDevice, reason: string): Promise<DeviceInfo> {
  registerGradients();
  await setBackend(backendName);
  return { device, threads, reason, description };
}
