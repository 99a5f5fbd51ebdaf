/**
 * Records shaders of our own into tfjs's command stream, in order with its kernels: several outputs, typed bindings, no
 * prelude. The only file that touches members of tfjs's backend that its types call private; tfjs-core 4.22 is final, and
 * `selfTest` proves at start-up that they still mean what they meant.
 */
import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import { env, type DataType, type TensorInfo } from '@tensorflow/tfjs-core';
import { DeviceError } from '@niwaki/tensor';
import type { Program } from './program.ts';

interface Internals {
  readonly device: GPUDevice;
  readonly tensorMap: { get(dataId: object): { values: unknown } };
  readonly commandQueueOwnedIds: WeakSet<object>;
  commandEncoder: GPUCommandEncoder | null;
  computePassEncoder: GPUComputePassEncoder | null;
  dispatchCountInPass: number;
  uploadToGPU(dataId: object): void;
  tensorToBinding(tensor: TensorInfo): GPUBindingResource;
  makeUniforms(values: { type: string; data: number[] }[]): GPUBindingResource;
  ensureCommandEncoderReady(): void;
  endComputePassEncoder(): void;
  submitQueue(): void;
}

/** A new tensor, or one that an earlier program of the same kernel made and this one goes on writing. */
export type Output = { readonly shape: readonly number[]; readonly dtype?: DataType } | TensorInfo;

export interface Run<I extends string, O extends string, U extends string> {
  readonly inputs: Readonly<Record<I, TensorInfo>>;
  readonly outputs: Readonly<Record<O, Output>>;
  readonly uniforms: Readonly<Record<U, number>>;
  /** Workgroups along x, y, z. */
  readonly groups: readonly [number, number?, number?];
}

const pipelines = new WeakMap<GPUDevice, Map<string, GPUComputePipeline>>();
const failures = new WeakMap<GPUDevice, string>();

/** What a device reports later, since WebGPU never throws: the next dispatch says it. */
export function watch(device: GPUDevice): void {
  device.addEventListener('uncapturederror', (event) => {
    if (!failures.has(device)) failures.set(device, event.error.message);
  });
  void device.lost.then(({ reason, message }) => {
    if (reason !== 'destroyed') failures.set(device, `device lost: ${message}`);
  });
}

/**
 * Runs one program and returns its outputs. Nothing is read back. Inputs are bound as flat arrays: shapes do not matter.
 * A program with an empty input gives zeros: sums over nothing.
 */
export function dispatch<I extends string, O extends string, U extends string>(
  backend: WebGPUBackend,
  program: Program<I, O, U>,
  run: Run<I, O, U>,
): Record<O, TensorInfo> {
  const gpu = backend as unknown as Internals;
  const failure = failures.get(gpu.device);
  if (failure !== undefined) throw new DeviceError(`WebGPU reported: ${failure}`, { help: 'Load the page or the process again.' });

  const inputs = (Object.keys(program.inputs) as I[]).map((name) => run.inputs[name]);
  const names = Object.keys(program.outputs) as O[];
  const outputs = names.map((name) => {
    const output: Output = run.outputs[name];
    return 'dataId' in output ? output : backend.makeTensorInfo([...output.shape], output.dtype ?? 'float32');
  });
  const made = Object.fromEntries(names.map((name, i) => [name, outputs[i]!])) as Record<O, TensorInfo>;
  if (inputs.some(isEmpty) || outputs.every(isEmpty)) {
    for (const output of outputs) gpu.tensorMap.get(output.dataId).values = zerosOf(output);
    return made;
  }

  checkSizes(gpu.device, program.key, [...inputs, ...outputs], run.groups);
  const tensors = [...inputs, ...outputs];
  for (const { dataId } of tensors) {
    gpu.uploadToGPU(dataId);
    // Its buffer may be reused only after the commands recorded so far were submitted.
    gpu.commandQueueOwnedIds.add(dataId);
  }
  const uniforms = (Object.keys(program.uniforms) as U[]).map((name) => ({
    type: uniformType[program.uniforms[name]],
    data: [run.uniforms[name]],
  }));
  const pipeline = pipelineOf(gpu.device, program);
  const entries = tensors.map((tensor, binding) => ({ binding, resource: gpu.tensorToBinding(tensor) }));
  if (uniforms.length > 0) entries.push({ binding: tensors.length, resource: gpu.makeUniforms(uniforms) });

  gpu.ensureCommandEncoderReady();
  gpu.computePassEncoder ??= gpu.commandEncoder!.beginComputePass({});
  gpu.computePassEncoder.setPipeline(pipeline);
  gpu.computePassEncoder.setBindGroup(0, gpu.device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries }));
  gpu.computePassEncoder.dispatchWorkgroups(...(run.groups as [number, number?, number?]));
  gpu.dispatchCountInPass++;
  if (env().getNumber('WEBGPU_DEFERRED_SUBMIT_BATCH_SIZE') <= gpu.dispatchCountInPass) {
    gpu.endComputePassEncoder();
    gpu.submitQueue();
  }
  return made;
}

const uniformType = { u32: 'uint32', i32: 'int32', f32: 'float32' } as const;

/** WebGPU would report these later and without a name. */
function checkSizes(device: GPUDevice, key: string, tensors: readonly TensorInfo[], groups: readonly (number | undefined)[]): void {
  const { maxStorageBufferBindingSize, maxComputeWorkgroupsPerDimension } = device.limits;
  for (const { shape } of tensors) {
    const bytes = 4 * shape.reduce((product, side) => product * side, 1);
    if (bytes <= maxStorageBufferBindingSize) continue;
    throw new DeviceError(`${key}: a tensor of [${shape}] takes ${bytes} bytes, this GPU binds at most ${maxStorageBufferBindingSize}`, {
      shape,
      bytes,
      limit: maxStorageBufferBindingSize,
      help: 'Split it by rows, or store it packed.',
    });
  }
  if (groups.some((count) => count !== undefined && count > maxComputeWorkgroupsPerDimension)) {
    throw new DeviceError(`${key}: [${groups}] workgroups are more than ${maxComputeWorkgroupsPerDimension} along one side`, {
      groups,
      help: 'Use a smaller batch.',
    });
  }
}

const isEmpty = ({ shape }: TensorInfo): boolean => shape.includes(0);

function zerosOf({ shape, dtype }: TensorInfo): Float32Array | Int32Array {
  const size = shape.reduce((product, side) => product * side, 1);
  return dtype === 'float32' ? new Float32Array(size) : new Int32Array(size);
}

function pipelineOf<I extends string, O extends string, U extends string>(
  device: GPUDevice,
  program: Program<I, O, U>,
): GPUComputePipeline {
  let cache = pipelines.get(device);
  if (cache === undefined) pipelines.set(device, (cache = new Map()));
  const present = cache.get(program.key);
  if (present !== undefined) return present;
  const inputs = Object.keys(program.inputs).length;
  const outputs = Object.keys(program.outputs).length;
  // Declared, not inferred: an inferred layout drops a binding that some variant of a shader does not read.
  const layout = device.createBindGroupLayout({
    label: program.key,
    entries: [
      ...Array.from({ length: inputs + outputs }, (_, binding) => ({
        binding,
        visibility: GPUShaderStage.COMPUTE,
        buffer: { type: binding < inputs ? ('read-only-storage' as const) : ('storage' as const) },
      })),
      ...(Object.keys(program.uniforms).length === 0
        ? []
        : [{ binding: inputs + outputs, visibility: GPUShaderStage.COMPUTE, buffer: { type: 'uniform' as const } }]),
    ],
  });
  const pipeline = device.createComputePipeline({
    label: program.key,
    layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
    compute: { module: device.createShaderModule({ label: program.key, code: program.code() }), entryPoint: 'main' },
  });
  cache.set(program.key, pipeline);
  return pipeline;
}
