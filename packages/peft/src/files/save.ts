import { encodeFloats, writeSafetensors, type ByteSink, type LazyTensor, type SaveTarget } from '@niwaki/hub';
import { bytesOf, checkCall, checkOptions, ConfigError, type Json, type Parameter } from '@niwaki/tensor';
import { anAdapterSet, type AdapterSet } from '@niwaki/nn';
import { isPeftSet, type PeftSet, type PortableForm } from '../adapter-method.ts';
import { fingerprintField } from '../fingerprint.ts';
import { isTokens } from '../trainable-tokens.ts';
import { writeFiles } from './folders.ts';
import { parameterKey, slotKey } from './keys.ts';

export interface SaveAdapterOptions {
  /** Type of the stored numbers, default 'f32': what was trained. The others halve the file and round. */
  readonly dtype?: 'f32' | 'f16' | 'bf16';
  /** Written beside it, so that the folder is enough to chat with. */
  readonly tokenizer?: { readonly files: { readonly tokenizer: Json; readonly config: Json } };
  /**
   * Of adapters whose start rewrote the base. 'portable' (default): as a plain LoRA of twice the rank for the original base,
   * A' = [A; A₀] and B' = [B, -B₀]; where that cannot be (the base is quantized codes of its own), as 'native'. 'native':
   * the pair as it is, for going on with training; whoever loads it rewrites the base in the same way, or has it from
   * `saveQuantized`, and a fingerprint tells. Slices trained in place (S²FT): as what was added to them, or 'native' as
   * they are.
   */
  readonly form?: 'portable' | 'native';
  readonly signal?: AbortSignal;
}

/**
 * Writes `adapter_config.json` and `adapter_model.safetensors` as Python's PEFT writes them: it loads them unchanged.
 * All files appear or none. A tensor at a time is in memory.
 * @throws ConfigError for a set that no PEFT file can hold
 * @example await saveAdapter(set, './my-adapter');
 */
export async function saveAdapter(set: AdapterSet, target: SaveTarget, options: SaveAdapterOptions = {}): Promise<void> {
  checkCall("saveAdapter(set, './my-adapter')", { set: [set, anAdapterSet] });
  checkOptions('saveAdapter', options, ['dtype', 'tokenizer', 'form', 'signal']);
  const { dtype = 'f32', tokenizer, form = 'portable', signal } = options;
  const own = peftForm(set);
  const other = form === 'portable' ? own.method.portable : undefined;
  const peft = other === undefined ? own : inForm(own, other);
  const type = ({ f32: 'F32', f16: 'F16', bf16: 'BF16' } as const)[dtype];
  const tensors = storedTensors(peft, other).map((tensor) => ({
    ...tensor,
    dtype: tensor.integers ? 'I32' : type,
    read: async () => {
      const values = await tensor.values();
      return values instanceof Int32Array ? bytesOf(values) : encodeFloats(values, type);
    },
  }));
  const json = (content: string) => (sink: ByteSink) => sink.write(new TextEncoder().encode(content));
  const files = new Map<string, (sink: ByteSink) => Promise<void>>();
  if (tokenizer !== undefined) {
    files.set('tokenizer.json', json(JSON.stringify(tokenizer.files.tokenizer, null, 2)));
    files.set('tokenizer_config.json', json(JSON.stringify(tokenizer.files.config, null, 2)));
  }
  files.set('adapter_model.safetensors', (sink) => writeSafetensors(tensors, sink, signal === undefined ? {} : { signal }));
  files.set('adapter_config.json', json(pythonJson(peft.method.file.write(peft))));
  await writeFiles(target, files);
}

function peftForm(set: AdapterSet): PeftSet {
  if (isPeftSet(set)) return set;
  throw new ConfigError(`adapter '${set.name}' (${set.method.kind}) has no PEFT form`, {
    name: set.name,
    kind: set.method.kind,
    help: 'Save sets that adapt or loadAdapter made.',
  });
}

/** The same change by another method, for the base as it was: no fingerprint of another one. */
function inForm(set: PeftSet, { method }: PortableForm): PeftSet {
  const { [fingerprintField]: _, ...fields } = set.fields;
  return { ...set, method: method(set), fields };
}

interface StoredTensor extends Pick<LazyTensor, 'name' | 'shape'> {
  /** Whether the values are whole numbers. */
  readonly integers?: boolean;
  values(): Promise<Float32Array | Int32Array>;
}

/** What a file holds of a set, in the form where one is given. Statistics and tables are made again on loading. */
function storedTensors(set: PeftSet, form: PortableForm | undefined): StoredTensor[] {
  const adapted = new Set([...set.sites].filter(([, adapter]) => !isTokens(adapter)).map(([path]) => path));
  const shared = new Set(set.method.shared?.slots);
  const seen = new Set<Parameter>();
  const tensors: StoredTensor[] = [];
  const add = (name: string, parameter: Parameter): void => {
    // A parameter that tied sites share is stored once, under the first of them.
    if (seen.has(parameter) || parameter.role === 'statistic' || parameter.role === 'index') return;
    seen.add(parameter);
    tensors.push({ name, shape: parameter.shape, values: async () => (await parameter.read().data()) as Float32Array });
  };
  for (const [path, adapter] of set.sites) {
    const changed = form?.tensors(adapter);
    for (const [slot, parameter] of Object.entries(adapter.parameters)) {
      const integers = set.method.integers?.[slot];
      if (integers !== undefined) {
        tensors.push({ name: slotKey(path, slot), shape: parameter.shape, integers: true, values: () => integers(adapter) });
        continue;
      }
      const other = changed?.get(slot);
      if (other === undefined) add(shared.has(slot) ? slot : slotKey(path, slot), parameter);
      else tensors.push({ name: slotKey(path, slot), ...other });
    }
  }
  for (const [name, parameter] of set.replaced) add(parameterKey(name, { wrapped: adapted.has(moduleOf(name)) }), parameter);
  for (const [name, stored] of set.alsoStored)
    tensors.push({ name: parameterKey(name, { wrapped: adapted.has(moduleOf(name)) }), ...stored });
  return tensors;
}

const moduleOf = (name: string): string => name.slice(0, name.lastIndexOf('.'));

/**
 * JSON as PEFT writes it: fields in order, two spaces. Nested keys keep their own order, since the first pattern that
 * matches wins; Python sorts them too, which is its loss.
 */
function pythonJson(fields: { readonly [field: string]: Json }): string {
  const sorted = Object.fromEntries(Object.entries(fields).sort(([a], [b]) => (a < b ? -1 : 1)));
  return JSON.stringify(sorted, null, 2);
}
