import { memoryFolderSink, openSafetensors, encodeSafetensors, memorySource } from '@niwaki/hub';
import { memory, mul, noise, createDraw, tidy, type RawTensor, type Tensor } from '@niwaki/tensor';
import type { AdapterSet, Model } from '@niwaki/nn';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { saveAdapter } from '@niwaki/peft';

export const rows = [
  [1, 2, 3, 4],
  [5, 6, 7, 8],
];

export type Files = Map<string, Uint8Array>;

/** Writes an adapter to memory. */
export async function filesOf(set: AdapterSet): Promise<Files> {
  const sink = memoryFolderSink();
  await saveAdapter(set, sink);
  return sink.files;
}

/** Gives every trainable parameter of a set values that show. */
export function perturb(set: AdapterSet, { size = 0.5, seed = 9 }: { size?: number; seed?: number } = {}): void {
  const draw = createDraw(seed, 0);
  for (const adapter of set.sites.values()) {
    for (const parameter of Object.values(adapter.parameters)) {
      if (parameter.role === 'statistic' || parameter.role === 'index') continue;
      parameter.write(tidy(() => mul(noise(parameter.shape, draw.at(`${parameter.path}#perturb`), 'gaussian'), size)) as Tensor);
    }
  }
}

export type Config = Record<string, unknown>;

export const configOf = (files: Files): Config => JSON.parse(new TextDecoder().decode(files.get('adapter_config.json'))) as Config;

/** The same adapter with another config. */
export function withConfig(files: Files, change: (config: Config) => Config): Files {
  return new Map(files).set('adapter_config.json', new TextEncoder().encode(JSON.stringify(change(configOf(files)))));
}

/** The same adapter with other tensors. */
export async function withTensors(files: Files, change: (tensors: Map<string, RawTensor>) => Map<string, RawTensor>): Promise<Files> {
  const file = await openSafetensors(memorySource(files.get('adapter_model.safetensors')!));
  const tensors = new Map<string, RawTensor>();
  for (const name of file.names()) tensors.set(name, await file.read(name));
  return new Map(files).set('adapter_model.safetensors', await encodeSafetensors(change(tensors), { cloneShared: true }));
}

export const renamed =
  (rename: (name: string) => string) =>
  (tensors: Map<string, RawTensor>): Map<string, RawTensor> =>
    new Map([...tensors].map(([name, raw]) => [rename(name), raw]));

/** Runs a test on a tiny model and checks that nothing is left of it. */
export async function onTiny(test: (model: Model) => Promise<void>, config: Record<string, unknown> = {}): Promise<number> {
  const before = memory().numTensors;
  const model = await tinyLlama(config);
  await test(model);
  model.dispose();
  return memory().numTensors - before;
}

/** The bytes of every parameter of the base, by path. */
export async function baseBytes(model: Model): Promise<Map<string, string>> {
  const bytes = new Map<string, string>();
  for (const site of model.sites(() => true)) {
    for (const [part, parameter] of Object.entries(site.weight!.parts)) {
      bytes.set(`${site.path}.${part}`, Buffer.from((await parameter.raw()).bytes).toString('base64'));
    }
  }
  return bytes;
}

/** What a promise rejects with. */
export async function rejection(promise: Promise<unknown>): Promise<Error & { details: Record<string, unknown> }> {
  try {
    await promise;
  } catch (error) {
    return error as Error & { details: Record<string, unknown> };
  }
  throw new Error('nothing was thrown');
}
