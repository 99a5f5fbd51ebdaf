import { copyRegisteredKernels, env, registerBackend } from '@tensorflow/tfjs-core';
import { addRecorder, DeviceError } from '@niwaki/tensor';
import type { StartedDevice } from '../started-device.ts';
import { replaceKernel } from '../replace-kernel.ts';
import { findAdapter, requestDevice, type FoundAdapter } from './adapter.ts';
import { watch } from './dispatch.ts';
import { webgpuKernels } from './kernels.ts';
import { createRecorder } from './recorder.ts';
import { takeOverTested } from './self-test.ts';

/** Our name, so that tfjs's own 'webgpu' device stays as it is beside ours. */
export const webgpuBackendName = 'niwaki-webgpu';

let found: Promise<FoundAdapter> | undefined;
let started: Promise<StartedDevice> | undefined;

/**
 * Starts WebGPU on a device of our own, with tfjs's kernels and ours on it. Does not make it current.
 * @throws DeviceError where there is no adapter, or only one that computes on the CPU and `software` is not set
 */
export async function initWebgpu({ software = false }: { software?: boolean | undefined }): Promise<StartedDevice> {
  const adapter = await (found ??= look(software).catch((error: unknown) => {
    found = undefined;
    throw error;
  }));
  if (adapter.software && !software) {
    throw new DeviceError(`webgpu: the only adapter computes on the CPU (${adapter.description}), where wasm is faster`, {
      adapter: adapter.description,
      help: "Use init({ device: 'wasm' }), or pass software: true to test on it.",
    });
  }
  return (started ??= start(adapter).catch((error: unknown) => {
    // An adapter gives one device; another try needs another adapter.
    started = found = undefined;
    throw error;
  }));
}

async function look(software: boolean): Promise<FoundAdapter> {
  const adapter = await findAdapter({ software });
  if (!('missing' in adapter)) return adapter;
  throw new DeviceError(`webgpu: ${adapter.missing}`, {
    help: "In Node: npm install webgpu, and a Vulkan, Metal or D3D12 driver. Or use init({ device: 'wasm' }).",
  });
}

async function start(found: FoundAdapter): Promise<StartedDevice> {
  const device = await requestDevice(found.adapter);
  watch(device);
  found.install();
  const { WebGPUBackend } = await import('@tensorflow/tfjs-backend-webgpu');
  // On: tensors that happen to be on the host are computed there, so that a forward and its recomputation differ in bits.
  env().set('WEBGPU_CPU_FORWARD', false);
  const backend = new WebGPUBackend(device, found.adapter.info);
  await takeOverTested(backend);
  copyRegisteredKernels('webgpu', webgpuBackendName);
  for (const kernel of webgpuKernels(webgpuBackendName)) replaceKernel(kernel);
  registerBackend(webgpuBackendName, () => backend);
  addRecorder(backend, createRecorder(backend));
  return { backendName: webgpuBackendName, threads: 1, description: found.description };
}
