import { getKernel, registerKernel, unregisterKernel, type KernelConfig } from '@tensorflow/tfjs-core';

/** Puts a kernel of ours in the place of tfjs's own, or where there was none. Putting the same one twice changes nothing. */
export function replaceKernel(kernel: KernelConfig): void {
  const present = getKernel(kernel.kernelName, kernel.backendName);
  if (present === kernel) return;
  if (present !== undefined) unregisterKernel(kernel.kernelName, kernel.backendName);
  registerKernel(kernel);
}
