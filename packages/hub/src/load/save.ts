import { checkCall, checkOptions, ConfigError, throwIfAborted, tidy, type Json } from '@niwaki/tensor';
import { aModel, type Model, type Site } from '@niwaki/nn';
import type { Weight } from '@niwaki/weights';
import { writeFile, writeTogether, type FolderSink, type SaveTarget } from '../bytes/folder.ts';
import type { ReadOptions } from '../bytes/byte-source.ts';
import { encodeFloats } from '../safetensors/decode.ts';
import { writeSafetensors, type LazyTensor } from '../safetensors/write.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';

export interface SaveModelOptions extends ReadOptions {
  /** What matrices and vectors are written as, rounded to nearest even. Default 'f32'. */
  readonly dtype?: 'f32' | 'f16' | 'bf16';
  /** Written beside the model. */
  readonly tokenizer?: Tokenizer;
  /** A file grows up to this, then the next one starts; default 5e9, as in Python. */
  readonly shardBytes?: number;
  readonly onProgress?: (progress: { readonly loaded: number; readonly total: number; readonly name: string }) => void;
}

const dtypes = { f32: ['F32', 'float32'], f16: ['F16', 'float16'], bf16: ['BF16', 'bfloat16'] } as const;
const tileEntries = 4_194_304;

/**
 * Writes the base model as a Hugging Face folder that Python loads: config.json, model.safetensors (or shards and their
 * index), the tokenizer's files. Quantized matrices are written as the numbers they stand for, pruned ones with their zeros,
 * which `load` knows again by the config; attached adapters are not part of it. Memory: one tile of a matrix (16 MB). Throws
 * AbortError, DeviceError; then the folder is as it was before.
 */
export async function saveModel(model: Model, target: SaveTarget, options: SaveModelOptions = {}): Promise<void> {
  checkCall("saveModel(model, './my-model')", { model: [model, aModel] });
  checkOptions('saveModel', options, ['dtype', 'tokenizer', 'shardBytes', 'signal', 'onProgress']);
  await writeTogether(target, async (folder) => {
    await writeModel(model, folder, options);
    throwIfAborted(options.signal, `saving to ${folder.name}`);
  });
}

async function writeModel(model: Model, folder: FolderSink, options: SaveModelOptions): Promise<void> {
  const { dtype = 'f32', tokenizer, shardBytes = 5e9, signal, onProgress } = options;
  if (!(shardBytes > 0)) throw new ConfigError(`shardBytes must be positive, got ${shardBytes}`, { shardBytes });
  const tensors = modelTensors(model, dtype);
  const total = tensors.reduce((sum, tensor) => sum + bytesOfTensor(tensor), 0);
  const shards = split(tensors, shardBytes);
  const five = (count: number): string => String(count).padStart(5, '0');
  const nameOf = (i: number): string =>
    shards.length === 1 ? 'model.safetensors' : `model-${five(i + 1)}-of-${five(shards.length)}.safetensors`;
  let before = 0;
  for (const [i, shard] of shards.entries()) {
    await writeSafetensors(shard, await folder.create(nameOf(i)), {
      ...(signal ? { signal } : {}),
      onProgress: ({ loaded, name }) => onProgress?.({ loaded: before + loaded, total, name }),
    });
    before += shard.reduce((sum, tensor) => sum + bytesOfTensor(tensor), 0);
  }
  if (shards.length > 1) await writeIndex(folder, shards, nameOf, total);
  // A reader takes the one file before the index: what an earlier save left there must not be read for this model.
  await folder.remove?.(shards.length > 1 ? 'model.safetensors' : 'model.safetensors.index.json');
  const config = { ...(model.info.config as { [field: string]: Json }), torch_dtype: dtypes[dtype][1] };
  await writeFile(folder, 'config.json', pretty(config));
  if (tokenizer !== undefined) await writeTokenizer(folder, tokenizer);
}

/** The base model's tensors by Hugging Face's names, read tile by tile; a tied head is its embedding and not repeated. */
export function modelTensors(model: Model, dtype: 'f32' | 'f16' | 'bf16'): readonly LazyTensor[] {
  const fileType = dtypes[dtype][0];
  const tensors: LazyTensor[] = [];
  for (const stage of model.stages()) {
    for (const site of stage.sites) tensors.push(...siteTensors(site, fileType));
    const ofSites = new Set(stage.sites.flatMap((site) => [...Object.values(site.weight?.parts ?? {}), ...(site.bias ? [site.bias] : [])]));
    const ofAdapters = new Set(
      [...model.adapters.values()].flatMap((set) => [
        ...[...set.sites.values()].flatMap((adapter) => Object.values(adapter.parameters)),
        ...set.replaced.values(),
      ]),
    );
    const ofInputs = new Set(stage.sites.flatMap(({ input }) => Object.values(input?.parts ?? {})));
    for (const parameter of stage.parameters()) {
      if (ofSites.has(parameter) || ofAdapters.has(parameter)) continue;
      // A step in 16 bits would be another step.
      const dtype = ofInputs.has(parameter) ? 'F32' : fileType;
      const read = async (): Promise<Uint8Array> => encodeFloats((await parameter.read().data()) as Float32Array, dtype);
      tensors.push({ name: parameter.path, dtype, shape: parameter.shape, read });
    }
  }
  return tensors;
}

function siteTensors({ path, weight, bias, tiedTo }: Site, dtype: 'F32' | 'F16' | 'BF16'): LazyTensor[] {
  const tensors: LazyTensor[] = [];
  if (weight !== undefined && tiedTo === undefined) {
    tensors.push({ name: `${path}.weight`, dtype, shape: weight.shape, read: () => tiles(weight, dtype) });
  }
  if (bias !== undefined) {
    const read = async (): Promise<Uint8Array> => encodeFloats((await bias.read().data()) as Float32Array, dtype);
    tensors.push({ name: `${path}.bias`, dtype, shape: bias.shape, read });
  }
  return tensors;
}

async function* tiles(weight: Weight, dtype: 'F32' | 'F16' | 'BF16'): AsyncGenerator<Uint8Array> {
  const [out, width] = weight.shape;
  const rows = Math.max(1, Math.floor(tileEntries / width));
  for (let from = 0; from < out; from += rows) {
    const tile = tidy(() => weight.dense([from, Math.min(out, from + rows)]));
    try {
      yield encodeFloats((await tile.data()) as Float32Array, dtype);
    } finally {
      tile.dispose();
    }
  }
}

const bytesOfTensor = ({ shape, dtype }: LazyTensor): number => shape.reduce((product, side) => product * side, dtype === 'F32' ? 4 : 2);

/** Greedy, in the model's order: a tensor beyond the limit has a file of its own. */
function split(tensors: readonly LazyTensor[], limit: number): LazyTensor[][] {
  const shards: LazyTensor[][] = [[]];
  let size = 0;
  for (const tensor of tensors) {
    const bytes = bytesOfTensor(tensor);
    if (size > 0 && size + bytes > limit) {
      shards.push([]);
      size = 0;
    }
    shards.at(-1)!.push(tensor);
    size += bytes;
  }
  return shards;
}

async function writeIndex(
  folder: FolderSink,
  shards: readonly (readonly LazyTensor[])[],
  nameOf: (i: number) => string,
  total: number,
): Promise<void> {
  const entries = shards.flatMap((shard, i) => shard.map(({ name }) => [name, nameOf(i)] as const));
  entries.sort(([a], [b]) => (a < b ? -1 : 1));
  await writeFile(
    folder,
    'model.safetensors.index.json',
    pretty({ metadata: { total_size: total }, weight_map: Object.fromEntries(entries) }),
  );
}

/** tokenizer.json, tokenizer_config.json and generation_config.json, as Python reads them. */
export async function writeTokenizer(folder: FolderSink, tokenizer: Tokenizer): Promise<void> {
  const { bosId, eosIds, padId, files } = tokenizer;
  const ids = { bos_token_id: bosId, eos_token_id: eosIds.length > 1 ? eosIds : eosIds[0], pad_token_id: padId };
  await writeFile(folder, 'tokenizer.json', pretty(files.tokenizer));
  await writeFile(folder, 'tokenizer_config.json', pretty(files.config));
  await writeFile(
    folder,
    'generation_config.json',
    pretty(Object.fromEntries(Object.entries(ids).filter(([, id]) => id !== undefined)) as Json),
  );
}

const pretty = (json: Json): string => `${JSON.stringify(json, null, 2)}\n`;
