import {
  modelTensors,
  saveModel,
  writeFile,
  writeSafetensors,
  writeTogether,
  writeTokenizer,
  type FolderSink,
  type LazyTensor,
  type SaveTarget,
  type Tokenizer,
} from '@niwaki/hub';
import { aModel, type Model } from '@niwaki/nn';
import { formats as ownFormats } from '@niwaki/quant';
import { checkCall, checkOptions, ConfigError, throwIfAborted, type Json, type RawTensor } from '@niwaki/tensor';
import { storedValues, type Format, type Weight } from '@niwaki/weights';

export interface SaveQuantizedOptions {
  /** Written beside the model. */
  readonly tokenizer?: Tokenizer;
  /** Asked in order for each matrix; default all that Niwaki has. */
  readonly formats?: readonly Format<Weight>[];
  readonly signal?: AbortSignal;
}

/**
 * Writes a model as it is stored: quantized matrices in the tensors of their format (what bitsandbytes and transformers
 * read), everything else as F32, and what the config has to say about it. Host memory: every matrix in its packed form.
 * @throws ConfigError where no matrix has a format of its own, or where two formats would have to share the config;
 *   AbortError, DeviceError: then the folder is as it was before
 */
export async function saveQuantized(model: Model, target: SaveTarget, options: SaveQuantizedOptions = {}): Promise<void> {
  checkCall("saveQuantized(model, './my-model')", { model: [model, aModel] });
  checkOptions('saveQuantized', options, ['tokenizer', 'formats', 'signal']);
  const packed = await packedMatrices(model, options);
  if (packed.size === 0) {
    throw new ConfigError('no matrix of the model is stored in a format that can be written', {
      help: 'Quantize it first, or save it with saveModel.',
    });
  }
  await writePacked(model, packed, target, options);
}

/**
 * Writes a model so that `load` gives it back as it is: quantized matrices in their format, pruned ones as pruned, everything
 * else as F32; GGUF blocks and half precision as the numbers they stand for. Host memory: every quantized matrix.
 * @throws ConfigError where a matrix is in a form that no file holds, before anything is written; as `saveQuantized`
 */
export async function saveStored(model: Model, target: SaveTarget, options: SaveQuantizedOptions = {}): Promise<void> {
  const packed = await packedMatrices(model, options);
  refuseLost(model, packed);
  if (packed.size > 0) return writePacked(model, packed, target, options);
  const { tokenizer, signal } = options;
  return saveModel(model, target, { ...(tokenizer && { tokenizer }), ...(signal && { signal }) });
}

/** Written as its numbers, such a matrix would come back as something else. */
function refuseLost(model: Model, packed: ReadonlyMap<string, Packed>): void {
  for (const { path, weight, tiedTo } of model.sites(() => true)) {
    if (weight === undefined || tiedTo !== undefined || packed.has(`${path}.weight`)) continue;
    const { kind } = storedValues(weight);
    if (kind === 'dense' || kind === 'gguf') continue;
    throw new ConfigError(`'${path}' is stored as ${weight.kind}${kind === weight.kind ? '' : ` over ${kind}`}, which no file holds`, {
      path,
      kind: weight.kind,
      help: 'Files hold nf4 and fp4, and integers whose rows are whole words; awq with fold: true. Leave this matrix out, or do not save the base.',
    });
  }
}

interface Packed {
  readonly format: Format<Weight>;
  readonly weight: Weight;
  readonly tensors: ReadonlyMap<string, RawTensor>;
}

/** By the name that the matrix would have in floats. */
async function packedMatrices(model: Model, { formats = ownFormats, signal }: SaveQuantizedOptions): Promise<ReadonlyMap<string, Packed>> {
  const packed = new Map<string, Packed>();
  for (const { path, weight, tiedTo } of model.stages().flatMap((stage) => stage.sites)) {
    if (weight === undefined || tiedTo !== undefined) continue;
    throwIfAborted(signal, 'saving the model');
    for (const format of formats) {
      const tensors = await format.write(weight, path);
      if (tensors === undefined) continue;
      packed.set(`${path}.weight`, { format, weight, tensors });
      break;
    }
  }
  const used = formatsOf(packed);
  if (used.length > 1) {
    throw new ConfigError(`one file cannot hold the formats ${used.map(({ name }) => name).join(' and ')}`, {
      formats: used.map(({ name }) => name),
      help: 'Quantize all of it the same way.',
    });
  }
  return packed;
}

const formatsOf = (packed: ReadonlyMap<string, Packed>): readonly Format<Weight>[] => [
  ...new Set([...packed.values()].map(({ format }) => format)),
];

const writePacked = (model: Model, packed: ReadonlyMap<string, Packed>, target: SaveTarget, options: SaveQuantizedOptions): Promise<void> =>
  writeTogether(target, async (folder) => {
    await writeModel(model, packed, folder, options);
    throwIfAborted(options.signal, `saving to ${folder.name}`);
  });

async function writeModel(
  model: Model,
  packed: ReadonlyMap<string, Packed>,
  folder: FolderSink,
  { tokenizer, signal }: SaveQuantizedOptions,
): Promise<void> {
  const plain = modelTensors(model, 'f32').filter(({ name }) => !packed.has(name));
  const lazy = [...packed.values()].flatMap(({ tensors }) =>
    [...tensors].map(([name, { bytes, ...entry }]): LazyTensor => ({ name, ...entry, read: async () => bytes })),
  );
  await writeSafetensors([...plain, ...lazy], await folder.create('model.safetensors'), signal === undefined ? {} : { signal });
  const [format] = formatsOf(packed);
  const about = format!.config?.(new Map([...packed].map(([name, { weight }]) => [name, weight]))) as object | undefined;
  const config = { ...(model.info.config as { [field: string]: Json }), torch_dtype: 'float32', ...about };
  await writeFile(folder, 'config.json', `${JSON.stringify(config, undefined, 2)}\n`);
  if (tokenizer !== undefined) await writeTokenizer(folder, tokenizer);
}
