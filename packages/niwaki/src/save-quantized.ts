import {
  modelTensors,
  writeFile,
  writeSafetensors,
  writeTogether,
  writeTokenizer,
  type FolderSink,
  type LazyTensor,
  type SaveTarget,
  type Tokenizer,
} from '@niwaki/hub';
import type { Model } from '@niwaki/nn';
import { formats as ownFormats } from '@niwaki/quant';
import { ConfigError, throwIfAborted, type Json, type RawTensor } from '@niwaki/tensor';
import type { Format, Weight } from '@niwaki/weights';

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
  const { formats = ownFormats, signal } = options;
  const packed = await packedMatrices(model, formats, signal);
  await writeTogether(target, async (folder) => {
    await writeModel(model, packed, folder, options);
    throwIfAborted(signal, `saving to ${folder.name}`);
  });
}

interface Packed {
  readonly format: Format<Weight>;
  readonly weight: Weight;
  readonly tensors: ReadonlyMap<string, RawTensor>;
}

/** By the name that the matrix would have in floats. */
async function packedMatrices(
  model: Model,
  formats: readonly Format<Weight>[],
  signal: AbortSignal | undefined,
): Promise<ReadonlyMap<string, Packed>> {
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
  if (used.length !== 1) {
    throw new ConfigError(
      used.length === 0
        ? 'no matrix of the model is stored in a format that can be written'
        : `one file cannot hold the formats ${used.map(({ name }) => name).join(' and ')}`,
      {
        formats: used.map(({ name }) => name),
        help: used.length === 0 ? 'Quantize it first, or save it with saveModel.' : 'Quantize all of it the same way.',
      },
    );
  }
  return packed;
}

const formatsOf = (packed: ReadonlyMap<string, Packed>): readonly Format<Weight>[] => [
  ...new Set([...packed.values()].map(({ format }) => format)),
];

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
