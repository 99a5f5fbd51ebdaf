import { modelTensors, openFolderSink, writeFile, writeSafetensors, type LazyTensor, type SaveTarget, type Tokenizer } from '@niwaki/hub';
import type { Model } from '@niwaki/nn';
import { formats as ownFormats } from '@niwaki/quant';
import { ConfigError, type Json, type RawTensor } from '@niwaki/tensor';
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
 * read), everything else as F32, and what the config has to say about it. Memory: one matrix in its packed form.
 * @throws ConfigError where no matrix has a format of its own, or where two formats would have to share the config
 */
export async function saveQuantized(model: Model, target: SaveTarget, options: SaveQuantizedOptions = {}): Promise<void> {
  const { formats = ownFormats, tokenizer, signal } = options;
  const packed = new Map<
    string,
    { readonly format: Format<Weight>; readonly weight: Weight; readonly tensors: ReadonlyMap<string, RawTensor> }
  >();
  for (const { path, weight, tiedTo } of model.stages().flatMap((stage) => stage.sites)) {
    if (weight === undefined || tiedTo !== undefined) continue;
    for (const format of formats) {
      const tensors = await format.write(weight, path);
      if (tensors === undefined) continue;
      packed.set(`${path}.weight`, { format, weight, tensors });
      break;
    }
  }
  const used = [...new Set([...packed.values()].map(({ format }) => format))];
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
  const plain = modelTensors(model, 'f32').filter(({ name }) => !packed.has(name));
  const lazy = [...packed.values()].flatMap(({ tensors }) =>
    [...tensors].map(([name, { bytes, ...entry }]): LazyTensor => ({ name, ...entry, read: async () => bytes })),
  );
  const folder = await openFolderSink(target);
  await writeSafetensors([...plain, ...lazy], await folder.create('model.safetensors'), signal === undefined ? {} : { signal });
  const about = used[0]!.config?.(new Map([...packed].map(([name, { weight }]) => [name, weight]))) as object | undefined;
  const config = { ...(model.info.config as { [field: string]: Json }), torch_dtype: 'float32', ...about };
  await writeFile(folder, 'config.json', pretty(config));
  if (tokenizer === undefined) return;
  await writeFile(folder, 'tokenizer.json', pretty(tokenizer.files.tokenizer));
  await writeFile(folder, 'tokenizer_config.json', pretty(tokenizer.files.config));
}

const pretty = (json: Json): string => `${JSON.stringify(json, undefined, 2)}\n`;
