import { getBackend, getKernelsForBackend, registerKernel, unregisterKernel } from '@tensorflow/tfjs-core';

/** Kernels that only name a buffer anew: nothing runs. */
const free = new Set(['Identity', 'Reshape']);

/** Counts the kernels that a function runs on the device, by name. */
export async function launchesOf(run: () => Promise<void>): Promise<Map<string, number>> {
  const counts = new Map<string, number>();
  const device = getBackend();
  const own = [...getKernelsForBackend(device)];
  let depth = 0;
  for (const kernel of own) {
    unregisterKernel(kernel.kernelName, device);
    registerKernel({
      ...kernel,
      kernelFunc: (call) => {
        // Kernels that a kernel is made of are its own business.
        if (depth === 0 && !free.has(kernel.kernelName)) counts.set(kernel.kernelName, (counts.get(kernel.kernelName) ?? 0) + 1);
        depth++;
        try {
          return kernel.kernelFunc(call);
        } finally {
          depth--;
        }
      },
    });
  }
  try {
    await run();
  } finally {
    for (const kernel of own) {
      unregisterKernel(kernel.kernelName, device);
      registerKernel(kernel);
    }
  }
  return counts;
}

export const totalOf = (counts: ReadonlyMap<string, number>): number => [...counts.values()].reduce((sum, count) => sum + count, 0);
