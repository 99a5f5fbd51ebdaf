import { DeviceError } from '@niwaki/tensor';

/** An adapter that was found, and what it is. */
export interface FoundAdapter {
  readonly gpu: GPU;
  readonly adapter: GPUAdapter;
  /** It computes on the CPU: right for tests, slower than wasm for anything else. */
  readonly software: boolean;
  readonly description: string;
  /** Makes the page's WebGPU names known where the platform does not bring them (Node). */
  install(): void;
}

/**
 * Looks for a WebGPU adapter: the browser's, or in Node that of the optional package `webgpu` (Dawn).
 * @returns the adapter, or in words why there is none
 */
export async function findAdapter(options: { software: boolean }): Promise<FoundAdapter | { readonly missing: string }> {
  const source = await findGpu();
  if ('missing' in source) return source;
  const { gpu } = source;
  const adapter =
    (await gpu.requestAdapter({ powerPreference: 'high-performance' })) ??
    (options.software ? await gpu.requestAdapter({ forceFallbackAdapter: true }) : null);
  if (adapter === null) return { missing: 'WebGPU is there, but offers no adapter' };
  const { vendor, architecture, device, description, isFallbackAdapter } = adapter.info;
  const words = [...new Set([vendor, architecture, description || device])].filter((word) => word).join(' ');
  const software = isFallbackAdapter === true || /swiftshader|llvmpipe|lavapipe|\bwarp\b|basic render/i.test(`${words} ${device}`);
  return { ...source, adapter, software, description: words || 'unnamed adapter' };
}

type Gpu = Pick<FoundAdapter, 'gpu' | 'install'>;

async function findGpu(): Promise<Gpu | { readonly missing: string }> {
  const present = (globalThis as { navigator?: { gpu?: GPU } }).navigator?.gpu;
  if (present !== undefined) return { gpu: present, install: () => {} };
  if (!isNode) return { missing: 'this browser has no WebGPU' };
  if (process.platform === 'linux' && !hasLibrary('libvulkan.so.1')) return { missing: 'this system has no Vulkan (libvulkan.so.1)' };
  try {
    // The name in a variable keeps bundlers from looking for a package that pages do not need.
    const name = 'webgpu';
    const dawn = (await import(/* @vite-ignore */ name)) as { create(flags: string[]): GPU; globals: object };
    const gpu = dawn.create([dawnFlags]);
    return { gpu, install: () => installInNode(gpu, dawn.globals) };
  } catch (cause) {
    return { missing: `the optional package 'webgpu' (Dawn for Node) did not load: ${(cause as Error).message}` };
  }
}

/**
 * Workgroup memory is zeroed by a loop, not by a constant as large as it: drivers that spell the constant out (SwiftShader)
 * take 30 times as long to compile a shader with 16 KiB of it. Same meaning, no cost elsewhere.
 */
const dawnFlags = 'disable-dawn-features=use_vulkan_zero_initialize_workgroup_memory_extension';

const isNode = typeof process !== 'undefined' && process.versions?.node !== undefined;

/**
 * Whether the system's loader finds a library. Dawn without Vulkan offers no adapter, and writes a stack trace to stderr that
 * nothing here could hold back. What is found is no addon of Node, which says so and lets go of it.
 */
function hasLibrary(name: string): boolean {
  try {
    process.dlopen({ exports: {} }, name);
    return true;
  } catch (error) {
    return !(error as Error).message.startsWith(`${name}: `);
  }
}

/** tfjs reads `navigator.gpu` while it is being imported, and GPUBuffer and its like from the global scope. */
function installInNode(gpu: GPU, globals: object): void {
  Object.assign(globalThis, globals);
  const scope = globalThis as { navigator?: object };
  if (scope.navigator === undefined) {
    Object.defineProperty(globalThis, 'navigator', { value: { gpu, userAgent: 'node' }, configurable: true });
  } else {
    Object.defineProperty(scope.navigator, 'gpu', { value: gpu, configurable: true });
  }
}

const wantedFeatures: readonly GPUFeatureName[] = ['shader-f16', 'subgroups', 'timestamp-query'];

const wantedLimits = [
  'maxBufferSize',
  'maxComputeInvocationsPerWorkgroup',
  'maxComputeWorkgroupSizeX',
  'maxComputeWorkgroupSizeY',
  'maxComputeWorkgroupStorageSize',
  'maxComputeWorkgroupsPerDimension',
  'maxStorageBufferBindingSize',
  'maxStorageBuffersPerShaderStage',
] as const;

/** A device with everything the adapter can give; tfjs's own asks for neither half floats, nor subgroups, nor more storage buffers. */
export async function requestDevice(adapter: GPUAdapter): Promise<GPUDevice> {
  try {
    return await adapter.requestDevice({
      requiredFeatures: wantedFeatures.filter((feature) => adapter.features.has(feature)),
      requiredLimits: Object.fromEntries(wantedLimits.map((name) => [name, adapter.limits[name]])),
    });
  } catch (cause) {
    throw new DeviceError('the WebGPU adapter gave no device', {
      cause,
      help: "Use init({ device: 'wasm' }), or update the graphics driver.",
    });
  }
}
