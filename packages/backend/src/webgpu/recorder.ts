/**
 * Launches taken down on their way into the command stream, ours and tfjs's. Buffers that are given back meanwhile stay the
 * recording's until it is freed, so that the same launches on the same bind groups compute the same again.
 */
import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import type { TensorInfo } from '@tensorflow/tfjs-core';
import type { Recorder } from '@niwaki/tensor';
import { sizeOf } from './kernel.ts';
import { launch, listeners, type Internals, type Launch } from './dispatch.ts';

export function createRecorder(backend: WebGPUBackend): Recorder {
  const gpu = backend as unknown as Internals;
  const bufferOf = ({ dataId }: TensorInfo): GPUBuffer => {
    gpu.uploadToGPU(dataId);
    return gpu.tensorMap.get(dataId).resource as GPUBuffer;
  };
  return {
    like: ({ shape, dtype }) => backend.makeTensorInfo([...shape], dtype),
    overwrite: (target, values) => {
      const [from, to] = [bufferOf(values), bufferOf(target)];
      gpu.ensureCommandEncoderReady();
      gpu.endComputePassEncoder();
      gpu.commandEncoder!.copyBufferToBuffer(from, 0, to, 0, 4 * sizeOf(target));
    },
    begin: () => {
      let broken = false;
      const breakOff = (): void => {
        broken = true;
      };
      const steps: Launch[] = [];
      const used = new Set<GPUBuffer>();
      const unused: (readonly [buffer: GPUBuffer, reuse: boolean])[] = [];
      const pool = gpu.bufferManager;
      const [read, upload] = [gpu.readSync, gpu.uploadToGPU];
      let uploads = false;
      listeners.set(gpu, (made) => void (made === undefined ? breakOff() : steps.push(made)));
      gpu.bufferManager = {
        ...pool,
        acquireBuffer: (...asked) => {
          const buffer = pool.acquireBuffer(...asked);
          if (!uploads) used.add(buffer);
          return buffer;
        },
        releaseBuffer: (buffer, reuse = true) => {
          used.delete(buffer);
          unused.push([buffer, reuse]);
        },
      };
      // What comes from the host is a constant, or a tensor that was there before and is needed on the device only now.
      gpu.uploadToGPU = (dataId) => {
        uploads = gpu.tensorMap.get(dataId).values != null;
        upload(dataId);
        uploads = false;
      };
      gpu.readSync = (dataId) => {
        breakOff();
        return read.call(backend, dataId);
      };
      const free = (): void => {
        for (const [buffer, reuse] of unused.splice(0)) pool.releaseBuffer(buffer, reuse);
      };
      return {
        breakOff,
        end: (left) => {
          listeners.delete(gpu);
          gpu.bufferManager = pool;
          gpu.readSync = read;
          gpu.uploadToGPU = upload;
          const results = left.map(({ dataId }) => gpu.tensorMap.get(dataId));
          const kept = new Set(results.map(({ resource }) => resource));
          if (broken || [...used].some((buffer) => !kept.has(buffer))) {
            free();
            return undefined;
          }
          return {
            bytes: [...used, ...unused.map(([buffer]) => buffer)].reduce((sum, { size }) => sum + size, 0),
            run: () => {
              for (const step of steps) launch(gpu, step);
              // What the host has read of the results is of the last time.
              for (const result of results) if (result.resource != null) result.values = null;
            },
            free,
          };
        },
      };
    },
  };
}
