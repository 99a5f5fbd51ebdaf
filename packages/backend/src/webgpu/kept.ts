import type { Program } from './program.ts';

export interface Pipeline {
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
}

/**
 * What one device has made so far. Everything a launch needs that does not change is here: making it again costs more than
 * the launch.
 */
export interface Kept {
  /** Asking the device for them takes a while. */
  readonly limits: { readonly binding: number; readonly workgroups: number };
  /** Compiled on first use, by the program's key. */
  pipeline(program: Program): Pipeline;
  /** The bindings of a pipeline of tfjs's. */
  layoutOf(pipeline: GPUComputePipeline): GPUBindGroupLayout;
  /** By layout and buffers: a training step asks for the same buffers in the same order each time. */
  bindGroup(layout: GPUBindGroupLayout, buffers: readonly GPUBuffer[]): GPUBindGroup;
  /** A uniform block, by content. */
  uniforms(words: Uint32Array): GPUBuffer;
  /** The values of a small tensor that came from the host, by content. */
  constant(words: Uint32Array): GPUBuffer;
}

const kept = new WeakMap<GPUDevice, Kept>();

export function keptOf(device: GPUDevice): Kept {
  let own = kept.get(device);
  if (own === undefined) kept.set(device, (own = keep(device)));
  return own;
}

/** Bind groups and buffers of one kind that are kept. */
const [mostGroups, mostBuffers] = [16_384, 4096];

function keep(device: GPUDevice): Kept {
  const pipelines = new Map<string, Pipeline>();
  const layouts = new WeakMap<GPUComputePipeline, GPUBindGroupLayout>();
  const groups = new Map<string, GPUBindGroup>();
  const uniforms = new Map<string, GPUBuffer>();
  const constants = new Map<string, GPUBuffer>();
  const numbers = new WeakMap<object, number>();
  let next = 1;
  const numberOf = (thing: object): number => {
    let number = numbers.get(thing);
    if (number === undefined) numbers.set(thing, (number = next++));
    return number;
  };
  const { maxStorageBufferBindingSize: binding, maxComputeWorkgroupsPerDimension: workgroups } = device.limits;
  return {
    limits: { binding, workgroups },
    pipeline: (program) => remember(pipelines, program.key, Infinity, () => compile(device, program)),
    layoutOf: (pipeline) => {
      let layout = layouts.get(pipeline);
      if (layout === undefined) layouts.set(pipeline, (layout = pipeline.getBindGroupLayout(0)));
      return layout;
    },
    bindGroup: (layout, buffers) => {
      let key = String(numberOf(layout));
      for (const buffer of buffers) key += `,${numberOf(buffer)}`;
      return remember(groups, key, mostGroups, () =>
        device.createBindGroup({ layout, entries: buffers.map((buffer, binding) => ({ binding, resource: { buffer } })) }),
      );
    },
    uniforms: (words) => remember(uniforms, words.join(), mostBuffers, () => bufferOf(device, words, GPUBufferUsage.UNIFORM)),
    constant: (words) => {
      const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
      return remember(constants, words.join(), mostBuffers, () => bufferOf(device, words, usage));
    },
  };
}

/** Old ones go all at once: what is asked for again is made again, and nothing has to be counted in between. */
function remember<T>(known: Map<string, T>, key: string, most: number, make: () => T): T {
  const present = known.get(key);
  if (present !== undefined) return present;
  if (known.size >= most) known.clear();
  const made = make();
  known.set(key, made);
  return made;
}

/** Never written again, so that launches on their way to the GPU may share it. */
function bufferOf(device: GPUDevice, words: Uint32Array, usage: GPUBufferUsageFlags): GPUBuffer {
  const buffer = device.createBuffer({ size: 4 * words.length, usage, mappedAtCreation: true });
  new Uint32Array(buffer.getMappedRange()).set(words);
  buffer.unmap();
  return buffer;
}

function compile(device: GPUDevice, program: Program): Pipeline {
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
  return { pipeline, layout };
}
