import { FormatError, type Json, type PackedParts, type RawTensor } from '@niwaki/tensor';
import { codebook4, codebook4BlockSizes, type Codebook4Options, type Format, type TensorSource, type Weight } from '@niwaki/weights';
import { parseQuantState, writeQuantState, type QuantState } from './quant-state.ts';

/**
 * The 4-bit matrices of bitsandbytes in a Hugging Face checkpoint: six tensors at most under the name of one. Whatever
 * dtype the packed bytes are filed under, they are read as bytes.
 */
export const bnb4bit: Format<Weight> = {
  name: 'bitsandbytes-4bit',
  claims: (names, path) => stateNames(names, path).length > 0,
  read: async (path, source) => {
    const [book, ...others] = stateNames(new Set(source.names()), path);
    if (book === undefined || others.length > 0) {
      throw new FormatError(`'${path}.weight' must have exactly one quant_state tensor`, { path, found: [book, ...others] });
    }
    const name = stateName(path, book);
    const state = parseQuantState(await readBytes(source, name, { most: 4096 }), name);
    if (state.quant_type !== book) throw new FormatError(`'${name}' says its type is '${state.quant_type}'`, { path, state });
    return codebook4(path, state.shape, await readParts(path, source, state), {
      blockSize: state.blocksize,
      book,
      dtype: state.dtype,
    });
  },
  write: (weight, path) => (isOurs(weight) ? writeParts(weight, path) : undefined),
  config: (values) => {
    const first = [...values.values()].find(isOurs);
    if (first === undefined) return {};
    const { book, dtype, nested } = first.options as { book: string; dtype: string; nested: boolean };
    return {
      quantization_config: {
        quant_method: 'bitsandbytes',
        _load_in_4bit: true,
        _load_in_8bit: false,
        load_in_4bit: true,
        load_in_8bit: false,
        bnb_4bit_quant_type: book,
        bnb_4bit_use_double_quant: nested,
        bnb_4bit_compute_dtype: dtype,
        bnb_4bit_quant_storage: 'uint8',
        llm_int8_threshold: 6,
        llm_int8_skip_modules: null,
        llm_int8_enable_fp32_cpu_offload: false,
        llm_int8_has_fp16_weight: false,
      },
    } satisfies Json;
  },
};

const books = ['nf4', 'fp4'];
const stateName = (path: string, book: string): string => `${path}.weight.quant_state.bitsandbytes__${book}`;
const stateNames = (names: ReadonlySet<string>, path: string): string[] => books.filter((book) => names.has(stateName(path, book)));

// bitsandbytes knows two books and f32 absmax in blocks of a list of sizes; anything else is not in its format.
function isOurs({ kind, options }: Weight): boolean {
  const { book, blockSize } = options as { book?: string; blockSize?: number };
  return kind === 'codebook4' && books.includes(book ?? '') && codebook4BlockSizes.includes(blockSize ?? 0);
}

async function readParts(path: string, source: TensorSource, state: QuantState): Promise<PackedParts> {
  const [out, width] = state.shape;
  const entries = out * width;
  const blocks = Math.ceil(entries / state.blocksize);
  const root = `${path}.weight`;
  const floats = async (name: string, count: number): Promise<Float32Array> => {
    const dtype = source.info(name).dtype;
    if (dtype !== 'F32') throw new FormatError(`'${name}' must be F32, got ${dtype}`, { name, dtype });
    const values = new Float32Array((await readBytes(source, name, { exactly: count * 4 })).slice().buffer);
    if (values.every(Number.isFinite)) return values;
    throw new FormatError(`'${name}' holds values that are not finite`, { name, help: 'The file is damaged: fetch it again.' });
  };
  const codes = await readBytes(source, root, { exactly: Math.ceil(entries / 2) });
  const codebook = await floats(`${root}.quant_map`, 16);
  if (state.nested_offset === undefined) return { codes, codebook, absmax: await floats(`${root}.absmax`, blocks) };
  return {
    codes,
    codebook,
    absmax: await readBytes(source, `${root}.absmax`, { exactly: blocks }),
    nestedMap: await floats(`${root}.nested_quant_map`, 256),
    nestedAbsmax: await floats(`${root}.nested_absmax`, Math.ceil(blocks / 256)),
    nestedOffset: Float32Array.of(state.nested_offset),
  };
}

/** The size is checked against what the shape asks for before anything is fetched. */
async function readBytes(source: TensorSource, name: string, { exactly, most }: { exactly?: number; most?: number }): Promise<Uint8Array> {
  const { bytes } = source.info(name);
  if ((exactly !== undefined && bytes !== exactly) || (most !== undefined && bytes > most)) {
    throw new FormatError(`'${name}' must have ${exactly ?? `at most ${most}`} bytes, got ${bytes}`, {
      name,
      expected: exactly ?? most,
      given: bytes,
      help: 'The file is damaged, or its shape and its data disagree.',
    });
  }
  return (await source.read(name)).bytes;
}

async function writeParts(weight: Weight, path: string): Promise<ReadonlyMap<string, RawTensor>> {
  const { blockSize, book, dtype } = weight.options as unknown as Required<Codebook4Options>;
  const tensors = new Map<string, RawTensor>();
  let offset: number | undefined;
  for (const [name, part] of Object.entries(weight.parts)) {
    const raw = await part.raw();
    // The offset is a number of the state, not a tensor of the file.
    if (name === 'weight.nested_offset') offset = new DataView(raw.bytes.buffer, raw.bytes.byteOffset).getFloat32(0, true);
    else tensors.set(`${path}.${name}`, raw);
  }
  const state: QuantState = {
    quant_type: book,
    blocksize: blockSize,
    dtype,
    shape: [weight.shape[0], weight.shape[1]],
    ...(offset === undefined ? {} : { nested_blocksize: 256, nested_dtype: 'float32', nested_offset: offset }),
  };
  const bytes = writeQuantState(state);
  return tensors.set(stateName(path, book), { dtype: 'U8', shape: [bytes.length], bytes });
}
