import {
  FormatError,
  denseParameter,
  ggufBlocks,
  tensor,
  throwIfAborted,
  type GgufFormat,
  type Parameter,
  type RawTensor,
  type Role,
} from '@niwaki/tensor';
import { createModel, type Model } from '@niwaki/nn';
import { denseWeight, ggufBlock, type Format, type TensorSource, type Weight } from '@niwaki/weights';
import type { JsonObject } from '../json.ts';
import { decodeFloats } from '../safetensors/decode.ts';
import { namedTensors } from './tensor-names.ts';

export interface ReadModelOptions {
  readonly dtype?: 'f32' | 'stored';
  readonly formats?: readonly Format<Weight>[];
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: { readonly loaded: number; readonly total: number; readonly name: string }) => void;
}

export interface ReadModelInput {
  readonly name: string;
  readonly config: JsonObject;
  readonly tensors: TensorSource;
  readonly warn: (message: string) => void;
}

/** A model out of named tensors, one read at a time; what nobody asked for is one warning. */
export async function readModel({ name: source, config, tensors, warn }: ReadModelInput, options: ReadModelOptions): Promise<Model> {
  const { dtype = 'f32', formats = [], signal, onProgress } = options;
  const named = namedTensors(tensors);
  checkLayers(config, tensors.names().length, source);
  const total = tensors.names().reduce((sum, name) => sum + tensors.info(name).bytes, 0);
  let loaded = 0;
  const counted: TensorSource = {
    ...named,
    read: async (name, range) => {
      throwIfAborted(signal, `loading ${source}`);
      const raw = await named.read(name, range);
      loaded += raw.bytes.byteLength;
      onProgress?.({ loaded, total, name });
      return raw;
    },
  };

  const weight = async (path: string, role: Role): Promise<Weight | undefined> => {
    const module = path.replace(/\.weight$/, '');
    const format = formats.find((candidate) => candidate.claims(named.known(), module, config));
    if (format !== undefined) return format.read(module, counted, config, { warn });
    return named.has(path) ? plainWeight(path, role, await counted.read(path), { dtype, config }) : undefined;
  };
  const vector = async (path: string, role: Role): Promise<Parameter | undefined> =>
    named.has(path) ? floatParameter(path, role, await counted.read(path), config) : undefined;

  const model = await createModel({
    config,
    source,
    warn,
    weight: (path, _, role) => weight(path, role),
    vector: (path, _, role) => vector(path, role),
  });
  const unread = named.unread();
  if (unread.length > 0) warn(`${source} holds tensors that the model does not use: ${unread.join(', ')}`);
  return model;
}

/** A config may promise billions of layers: looking for each of them would take forever. */
function checkLayers(config: JsonObject, tensors: number, source: string): void {
  const layers = config['num_hidden_layers'];
  if (typeof layers !== 'number' || layers <= tensors) return;
  throw new FormatError(`${source}: the config says ${layers} layers, the files hold ${tensors} tensors`, { source, layers, tensors });
}

function plainWeight(path: string, role: Role, raw: RawTensor, { dtype, config }: { dtype: 'f32' | 'stored'; config: JsonObject }): Weight {
  const half = raw.dtype === 'F16' || raw.dtype === 'BF16';
  if ((half && dtype === 'stored') || (!half && isBlocks(raw.dtype))) {
    const [out = 1, width = 1] = raw.shape;
    return ggufBlock(path.replace(/\.weight$/, ''), [out, width], raw.dtype as GgufFormat, owned(raw.bytes));
  }
  return denseWeight(floatParameter(path, role, raw, config));
}

const isBlocks = (dtype: string): dtype is GgufFormat => Object.hasOwn(ggufBlocks, dtype);
const floatTypes = new Set(['F32', 'F16', 'BF16', 'F64', 'F8_E4M3', 'F8_E5M2']);

function floatParameter(path: string, role: Role, raw: RawTensor, config: JsonObject): Parameter {
  if (!floatTypes.has(raw.dtype)) throw notPlain(path, raw, config);
  return denseParameter(path, tensor(decodeFloats({ ...raw, bytes: owned(raw.bytes) }), [...raw.shape], 'float32'), { role });
}

/** A device may keep the array it is given: a view into a caller's buffer would keep, and share, all of it. */
const owned = (bytes: Uint8Array): Uint8Array => (bytes.byteLength === bytes.buffer.byteLength ? bytes : bytes.slice());

function notPlain(path: string, { dtype, shape }: RawTensor, config: JsonObject): FormatError {
  const quantization = config['quantization_config'];
  const method =
    typeof quantization === 'object' && quantization !== null && 'quant_method' in quantization ? quantization.quant_method : undefined;
  return new FormatError(
    `tensor '${path}' is stored as ${dtype}, which holds no plain numbers${method === undefined ? '' : ` (quant_method: ${String(method)})`}`,
    {
      tensor: path,
      dtype,
      shape,
      method,
      help:
        method === undefined
          ? 'Use a file in Q4_0, Q4_1, Q8_0, Q4_K, Q6_K, F16, BF16 or F32.'
          : 'Pass the formats of the method that quantized it to load, as `formats`.',
    },
  );
}
