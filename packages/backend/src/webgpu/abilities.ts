import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';

/** What shaders of a device may use beyond what every device has. A kernel that uses it has a plain variant too. */
export interface Abilities {
  /** Sums over the threads that run as one, each knowing which of a workgroup's subgroups it is in: their size is never assumed. */
  readonly subgroups: boolean;
  /** Products of four bytes with four bytes, summed: `dot4I8Packed` and its like. */
  readonly packedDots: boolean;
  /** Storage buffers that one shader may bind: at least 8. */
  readonly buffers: number;
}

const known = new WeakMap<GPUDevice, Abilities>();

export function abilitiesOf(backend: WebGPUBackend): Abilities {
  const { device } = backend as unknown as { readonly device: GPUDevice };
  let abilities = known.get(device);
  if (abilities === undefined) {
    // Of the language, not of the device: the set of a browser that has none is absent.
    const language = navigator.gpu.wgslLanguageFeatures as ReadonlySet<string> | undefined;
    abilities = {
      subgroups: device.features.has('subgroups') && language?.has('subgroup_id') === true,
      packedDots: language?.has('packed_4x8_integer_dot_product') === true,
      buffers: device.limits.maxStorageBuffersPerShaderStage,
    };
    known.set(device, abilities);
  }
  return abilities;
}
