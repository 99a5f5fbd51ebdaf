/**
 * Records shaders of our own into tfjs's command stream, in order with its kernels: several outputs, typed bindings, no
 * prelude. With recorder.ts the only file that touches members of tfjs's backend that its types call private; tfjs-core 4.22 is
 * final, and `takeOverTested` proves at start-up that they still mean what they meant.
 */
import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import { util, type DataType, type TensorInfo } from '@tensorflow/tfjs-core';
import { DeviceError } from '@niwaki/tensor';
import { createBufferPool, type BufferPool } from './buffer-pool.ts';
import { keptOf, type Kept, type Pipeline } from './kept.ts';
import type { Program } from './program.ts';

export interface Internals {
  readonly device: GPUDevice;
  readonly tensorMap: { has(dataId: object): boolean; get(dataId: object): TensorData };
  readonly activeTimers: unknown;
  bufferManager: BufferPool;
  commandEncoder: GPUCommandEncoder | null;
  computePassEncoder: GPUComputePassEncoder | null;
  dispatchCountInPass: number;
  uploadToGPU(dataId: object): void;
  ensureCommandEncoderReady(): void;
  endComputePassEncoder(): void;
  readSync(dataId: object): unknown;
  submitQueue(): void;
  recordAndSubmit(program: StockProgram, output: TensorInfo, inputs: TensorInfo[], uniforms?: StockUniform[]): void;
}

interface TensorData {
  values: unknown;
  resource: unknown;
  /** Its buffer is not the pool's. */
  external?: boolean;
  /** Reads on their way to the host, which will remember what they bring. */
  reads?: number;
}

/** A kernel of tfjs's own, compiled. */
interface StockProgram {
  readonly pipeline: GPUComputePipeline;
  readonly dispatch: [number, number, number];
  readonly pixelsOpType?: unknown;
  readonly size?: boolean;
  readonly outputComponent?: number;
  readonly outputShape: number[];
}

interface StockUniform {
  readonly type: string;
  readonly data: number[];
}

/** A new tensor, or one to be written over: `overwritten`, or what an earlier program of the same kernel made. */
export type Output = { readonly shape: readonly number[]; readonly dtype?: DataType } | TensorInfo;

export interface Run<I extends string, O extends string, U extends string> {
  readonly inputs: Readonly<Record<I, TensorInfo>>;
  readonly outputs: Readonly<Record<O, Output>>;
  readonly uniforms: Readonly<Record<U, number>>;
  /** Workgroups along x, y, z. */
  readonly groups: readonly [number, number?, number?];
}

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

  const kept = keptOf(gpu.device);
  const tensors = [...inputs, ...outputs];
  checkSizes(kept, program.key, tensors, run.groups);
  for (const { dataId } of tensors) gpu.uploadToGPU(dataId);
  const buffers = tensors.map(({ dataId }) => gpu.tensorMap.get(dataId).resource as GPUBuffer);
  const uniforms = Object.keys(program.uniforms) as U[];
  if (uniforms.length > 0) {
    const words = wordsOf(uniforms.map((name) => ({ type: uniformType[program.uniforms[name]], data: [run.uniforms[name]] })));
    buffers.push(kept.uniforms(words));
  }
  record(gpu, { ...kept.pipeline(program), buffers }, run.groups as [number, number?, number?]);
  return made;
}

/**
 * The memory of tensors under other names, for a program to write its results over them; undefined where another tensor may
 * share one of the buffers by its content, or the host remembers what is in it or is about to.
 */
export function overwritten<T extends readonly TensorInfo[]>(
  backend: WebGPUBackend,
  ...tensors: T
): { readonly [K in keyof T]: TensorInfo } | undefined {
  const { tensorMap } = backend as unknown as Internals;
  const free = ({ values, resource, external, reads = 0 }: TensorData): boolean =>
    values == null && resource != null && external !== true && reads === 0;
  if (!tensors.every(({ dataId }) => free(tensorMap.get(dataId)))) return undefined;
  return tensors.map(({ dataId, shape, dtype }) => {
    backend.incRef(dataId);
    return { dataId, shape, dtype };
  }) as unknown as { readonly [K in keyof T]: TensorInfo };
}

function record(
  gpu: Internals,
  { pipeline, layout, buffers }: Pipeline & { readonly buffers: readonly GPUBuffer[] },
  groups: [number, number?, number?],
): void {
  const made: Launch = { pipeline, bindGroup: keptOf(gpu.device).bindGroup(layout, buffers), groups };
  launch(gpu, made);
  listeners.get(gpu)?.(made);
}

/** A shader with everything that it is run on. */
export interface Launch {
  readonly pipeline: GPUComputePipeline;
  readonly bindGroup: GPUBindGroup;
  readonly groups: [number, number?, number?];
}

/** Who is told of the launches of a backend, and with nothing of one that takes another way. */
export const listeners: WeakMap<Internals, (made: Launch | undefined) => void> = new WeakMap();

/** Puts a launch into the command stream. */
export function launch(gpu: Internals, { pipeline, bindGroup, groups }: Launch): void {
  gpu.ensureCommandEncoderReady();
  const pass = (gpu.computePassEncoder ??= gpu.commandEncoder!.beginComputePass({}));
  pass.setPipeline(pipeline);
  pass.setBindGroup(0, bindGroup);
  pass.dispatchWorkgroups(...groups);
  gpu.dispatchCountInPass++;
  if (submitEvery <= gpu.dispatchCountInPass) {
    gpu.endComputePassEncoder();
    gpu.submitQueue();
  }
}

/** Commands recorded before they are handed to the GPU; tfjs's 15 splits a transformer's block into a dozen submissions. */
const submitEvery = 64;

/**
 * Lets tfjs's own kernels launch as ours do: from kept buffers, uniforms and bind groups. Before the first of them runs.
 * A tensor that is disposed gives its buffer back at once, where tfjs waits for the commands that name it to be submitted:
 * nothing here writes to a buffer but commands, and those keep their order.
 */
export function takeOver(backend: WebGPUBackend): void {
  const gpu = backend as unknown as Internals;
  const stock = gpu.recordAndSubmit.bind(backend);
  const pool = createBufferPool(gpu.device);
  gpu.bufferManager = pool;
  const submit = gpu.submitQueue.bind(backend);
  gpu.submitQueue = () => {
    submit();
    pool.trim();
  };
  const kept = keptOf(gpu.device);
  const upload = gpu.uploadToGPU.bind(backend);
  gpu.uploadToGPU = (dataId) => {
    const data = gpu.tensorMap.get(dataId);
    const words = data.resource == null ? smallWords(data.values) : undefined;
    if (words === undefined) return upload(dataId);
    data.resource = kept.constant(words);
    data.external = true;
    data.values = null;
  };
  const read = backend.read.bind(backend);
  backend.read = async (dataId) => {
    if (!gpu.tensorMap.has(dataId)) return read(dataId);
    const data = gpu.tensorMap.get(dataId);
    data.reads = (data.reads ?? 0) + 1;
    try {
      return await read(dataId);
    } finally {
      data.reads--;
    }
  };
  gpu.recordAndSubmit = (program, output, inputs, defined = []) => {
    // Images and timed launches are not worth a second way.
    if (program.pixelsOpType != null || gpu.activeTimers != null) {
      listeners.get(gpu)?.(undefined);
      return stock(program, output, inputs, defined);
    }
    const tensors = [output, ...inputs];
    // The order that tfjs's shaders declare their uniforms in.
    const uniforms: StockUniform[] = [
      { type: 'float32', data: [NaN] },
      { type: 'float32', data: [Infinity] },
      ...[...inputs, output].flatMap(({ shape }) => [
        { type: 'int32', data: shape },
        { type: 'int32', data: util.computeStrides(shape) },
      ]),
    ];
    if (program.size) uniforms.push({ type: 'int32', data: [util.sizeFromShape(program.outputShape) / (program.outputComponent || 1)] });
    const buffers = tensors.map(({ dataId }) => gpu.tensorMap.get(dataId).resource as GPUBuffer);
    buffers.push(kept.uniforms(wordsOf([...uniforms, ...defined])));
    const { pipeline } = program;
    record(gpu, { pipeline, layout: kept.layoutOf(pipeline), buffers }, program.dispatch);
  };
}

function smallWords(values: unknown): Uint32Array | undefined {
  if (!(values instanceof Float32Array || values instanceof Int32Array) || values.length === 0 || values.length > 64) return undefined;
  return new Uint32Array(values.buffer, values.byteOffset, values.length);
}

/** Words of a uniform block as WGSL lays it out: vectors of 3 and more on 16 bytes, of 2 on 8; tfjs writes 5 and 6 as two vectors. */
function wordsOf(uniforms: readonly StockUniform[]): Uint32Array {
  const starts: number[] = [];
  let [end, widest, long] = [0, 1, false];
  for (const { data } of uniforms) {
    const length = Math.max(data.length, 1);
    // What follows a structure of two vectors begins on 16 bytes as well.
    const alignment = long || length > 2 ? 4 : length;
    widest = Math.max(widest, alignment);
    starts.push((end = Math.ceil(end / alignment) * alignment));
    end += length;
    long = length > 4;
  }
  const words = new Uint32Array(Math.ceil(end / widest) * widest);
  const floats = new Float32Array(words.buffer);
  uniforms.forEach(({ type, data }, i) => {
    // A scalar has shape [], which tfjs's shaders read as 1.
    (type === 'float32' ? floats : words).set(data.length === 0 ? [1] : data, starts[i]!);
  });
  return words;
}

const uniformType = { u32: 'uint32', i32: 'int32', f32: 'float32' } as const;

/** WebGPU would report these later and without a name. */
function checkSizes({ limits }: Kept, key: string, tensors: readonly TensorInfo[], groups: readonly (number | undefined)[]): void {
  for (const { shape } of tensors) {
    const bytes = 4 * shape.reduce((product, side) => product * side, 1);
    if (bytes <= limits.binding) continue;
    throw new DeviceError(`${key}: a tensor of [${shape}] takes ${bytes} bytes, this GPU binds at most ${limits.binding}`, {
      shape,
      bytes,
      limit: limits.binding,
      help: 'Split it by rows, or store it packed.',
    });
  }
  if (groups.some((count) => count !== undefined && count > limits.workgroups)) {
    throw new DeviceError(`${key}: [${groups}] workgroups are more than ${limits.workgroups} along one side`, {
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
