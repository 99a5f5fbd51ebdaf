import { openSafetensors, parseJsonObject, type Folder, type SafetensorsFile } from '@niwaki/hub';
import { validateSites } from '@niwaki/engine';
import { checkCall, checkOptions, FormatError, NotFoundError, type Json } from '@niwaki/tensor';
import { disposeWeight, fingerprintOf, type Weight } from '@niwaki/weights';
import { aModel, type Model } from '@niwaki/nn';
import { attachActive, checkName } from '../adapt.ts';
import type { AdapterFile, ReadConfig } from '../adapter-file.ts';
import { ownedBy, type PeftSet, type Warn, type Warning } from '../adapter-method.ts';
import { fingerprintField } from '../fingerprint.ts';
import { mergedAdapters } from '../merge.ts';
import { putWeights, refuseReordered, refuseShared } from '../rewritten.ts';
import { collectWarnings } from '../warning.ts';
import { BaseModelError } from './errors.ts';
import { folderOf, type AdapterSource } from './folders.ts';
import { matchContent, type Content } from './match.ts';
import { restoreSet } from './restore.ts';

export interface LoadAdapterOptions {
  /** Default 'default'. The file holds no name. */
  readonly name?: string;
  /** Default true: every tensor of the config is there and nothing else. False: what fits is taken, the rest is a warning. */
  readonly strict?: boolean;
  /** Default false: loaded to be used. True: its parameters train further, it is the active set, and all else is frozen. */
  readonly trainable?: boolean;
  /** Default 'warn': another `base_model_name_or_path` than the model's is a warning, since names of files differ. */
  readonly base?: 'warn' | 'require';
  /** Types of adapters that may be in it; each package of methods has its `adapterFiles`. */
  readonly types?: readonly AdapterFile[];
  readonly signal?: AbortSignal;
  readonly onWarning?: (warning: Warning) => void;
}

const maxConfigBytes = 2 ** 24;

/**
 * Reads an adapter that Python's PEFT or `saveAdapter` wrote and attaches it. It is active if it is the only one. The
 * model is as it was if anything fails, and no tensor is read before all names, types and shapes are right.
 * @throws MissingTensorsError, UnexpectedTensorsError, ShapeError, RankError, TensorTypeError, UnsupportedFieldError,
 *   BaseModelError, FormatError; NotFoundError where there is no adapter or nothing it targets
 * @example const set = await loadAdapter(model, './my-adapter', { name: 'mine' });
 */
export async function loadAdapter(model: Model, source: AdapterSource, options: LoadAdapterOptions = {}): Promise<PeftSet> {
  checkCall("loadAdapter(model, './my-adapter')", { model: [model, aModel] });
  checkOptions('loadAdapter', options, ['name', 'strict', 'trainable', 'base', 'types', 'signal', 'onWarning']);
  const { name = 'default', strict = true, trainable = false, base = 'warn', types = [], signal, onWarning } = options;
  checkName(model, name);
  const { list: warnings, warn } = collectWarnings(onWarning);
  const folder = await folderOf(source, { signal });
  const config = await readConfig(folder, model, types, warn);
  checkBase(config, model, base, warn);
  const file = await openTensors(folder);
  try {
    const content = matchContent(file, model, config, { strict, warn });
    await checkFingerprint(config, content);
    const paths = [...content.sites.map(({ site }) => site), ...content.tokens.flatMap(({ target }) => target.sites)].map(
      ({ path }) => path,
    );
    const { method } = config;
    refuseShared(model, paths, { method, merged: mergedAdapters(model) });
    refuseReordered(model, paths, method);
    if (method.rewrites !== undefined)
      validateSites(
        method,
        content.sites.map(({ site }) => site),
        model,
      );
    const { set, weights } = await restoreSet(file, model, config, content, { name, trainable, warn, warnings, signal });
    try {
      if (trainable) attachActive(model, set);
      else model.attach(set);
      putWeights(model, weights);
    } catch (error) {
      for (const parameter of ownedBy(set)) parameter.dispose();
      for (const weight of weights.values()) disposeWeight(weight);
      throw error;
    }
    return set;
  } finally {
    await file.close();
  }
}

async function readConfig(folder: Folder, model: Model, types: readonly AdapterFile[], warn: Warn): Promise<ReadConfig> {
  const source = await folder.open('adapter_config.json');
  if (source === undefined) throw new NotFoundError(`no adapter_config.json in ${folder.name}`, { folder: folder.name });
  try {
    if (source.size > maxConfigBytes)
      throw new FormatError(`adapter_config.json has ${source.size} bytes`, { size: source.size, limit: maxConfigBytes });
    const json = parseJsonObject(await source.read(0, source.size), 'adapter_config.json');
    return fileOf(json, types).read(json, model, warn);
  } finally {
    await source.close?.();
  }
}

function fileOf(json: { readonly [field: string]: Json }, types: readonly AdapterFile[]): AdapterFile {
  const type = json['peft_type'];
  const file = types.find(({ peftType }) => peftType === type);
  if (file !== undefined) return file;
  throw new FormatError(
    type === undefined ? 'adapter_config.json has no peft_type' : `adapters of peft_type ${JSON.stringify(type)} are not read here`,
    {
      peftType: type,
      known: types.map(({ peftType }) => peftType),
    },
  );
}

function checkBase({ fields }: ReadConfig, model: Model, base: 'warn' | 'require', warn: Warn): void {
  const wanted = fields['base_model_name_or_path'];
  if (typeof wanted !== 'string' || wanted === '' || wanted === model.info.source) return;
  const message = `the adapter was made for '${wanted}', the model came from '${model.info.source}'`;
  if (base === 'require') throw new BaseModelError(message, { expected: wanted, given: model.info.source });
  warn('base-name', message, [wanted, model.info.source]);
}

/** Where the file says which base it was trained on: one that was rewritten and is no public checkpoint. */
async function checkFingerprint({ fields }: ReadConfig, { sites }: Content): Promise<void> {
  const expected = fields[fingerprintField];
  if (typeof expected !== 'string') return;
  const weights = new Map(sites.map(({ site }): [string, Weight] => [site.path, site.weight!]));
  const given = await fingerprintOf(weights);
  if (given === expected) return;
  throw new BaseModelError('the adapter belongs to a base that was quantized together with it, and the model holds other weights', {
    field: fingerprintField,
    expected,
    given,
    help: 'Load the base that was saved with the adapter, or make it again with the same start, options and seed.',
  });
}

async function openTensors(folder: Folder): Promise<SafetensorsFile> {
  const source = await folder.open('adapter_model.safetensors');
  if (source !== undefined) {
    try {
      return await openSafetensors(source);
    } catch (error) {
      await source.close?.();
      throw error;
    }
  }
  const pickle = await folder.open('adapter_model.bin');
  if (pickle !== undefined) {
    await pickle.close?.();
    throw new FormatError('adapter_model.bin is a pickle, which can run code and is not read', {
      help: 'In Python: PeftModel.from_pretrained(base, path).save_pretrained(path, safe_serialization=True).',
    });
  }
  throw new NotFoundError(`no adapter_model.safetensors in ${folder.name}`, { folder: folder.name });
}
