import type { KernelConfig } from '@tensorflow/tfjs-core';

/** Every kernel of ours on this device. */
export function webgpuKernels(backendName: string): readonly KernelConfig[] {
  return [].map((kernel: object) => ({ ...(kernel as KernelConfig), backendName }));
}
