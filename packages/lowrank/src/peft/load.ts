import { decodeFloats, openSafetensors, parseJsonObject, type SafetensorsFile } from '@niwaki/hub';
import {
  createDraw,
  FormatError,
  NotFoundError,
  ShapeError,
  tensor,
  throwIfAborted,
  type Json,
  type Parameter,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import type { Adapter, Model, Site } from '@niwaki/nn';
import { checkName } from '../adapt.ts';
import { baseOf, ownedBy, type Binding, type PeftSet, type StoredBase, type StoredShapes } from '../adapter-method.ts';
import { targetSites } from '../targets.ts';
import { tokensSlot, tokenTargets, trainableTokens, type TokenTarget } from '../trainable-tokens.ts';
import { collectWarnings, type Warn, type Warning } from '../warning.ts';
import { replaceables, replacedNames, replacement, type Replaceable } from '../whole-modules.ts';
import { BaseModelError, MissingTensorsError, RankError, TensorTypeError, UnexpectedTensorsError } from './errors.ts';
import { peftFamilies } from './families.ts';
import type { ReadConfig } from './family.ts';
import { folderOf, type AdapterSource, type ReadableFolder } from './files.ts';
import { layoutOf, type FileLayout } from './keys.ts';

export interface LoadAdapterOptions {
  /** Default 'default'. The file holds no name. */
  readonly name?: string;
  /** Default true: every tensor of the config is there and nothing else. False: what fits is taken, the rest is a warning. */
  readonly strict?: boolean;
  /** Default false: loaded to be used. True: its parameters train further. */
  readonly trainable?: boolean;
  /** Default 'warn': another `base_model_name_or_path` than the model's is a warning, since names of files differ. */
  readonly base?: 'warn' | 'require';
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
  const { name = 'default', strict = true, trainable = false, base = 'warn', signal, onWarning } = options;
  checkName(model, name);
  const { list: warnings, warn } = collectWarnings(onWarning);
  const folder = folderOf(source, { signal });
  const config = await readConfig(folder, model, warn);
  checkBase(config, model, base, warn);
  const file = await openTensors(folder);
  try {
    const content = matchContent(file, model, config, { strict, warn });
    const set = await build(file, model, config, content, { name, trainable, warn, warnings, signal });
    try {
      model.attach(set);
    } catch (error) {
      for (const parameter of ownedBy(set)) parameter.dispose();
      throw error;
    }
    return set;
  } finally {
    await file.close();
  }
}

async function readConfig(folder: ReadableFolder, model: Model, warn: Warn): Promise<ReadConfig> {
  const source = await folder.open('adapter_config.json');
  if (source === undefined) throw new NotFoundError(`no adapter_config.json in ${folder.name}`, { folder: folder.name });
  try {
    if (source.size > maxConfigBytes)
      throw new FormatError(`adapter_config.json has ${source.size} bytes`, { size: source.size, limit: maxConfigBytes });
    const json = parseJsonObject(await source.read(0, source.size), 'adapter_config.json');
    return familyOf(json).read(json, model, warn);
  } finally {
    await source.close?.();
  }
}

function familyOf(json: { readonly [field: string]: Json }): NonNullable<ReturnType<typeof peftFamilies.get>> {
  const type = json['peft_type'];
  const family = typeof type === 'string' ? peftFamilies.get(type) : undefined;
  if (family !== undefined) return family;
  throw new FormatError(
    type === undefined ? 'adapter_config.json has no peft_type' : `adapters of peft_type ${JSON.stringify(type)} are not read here`,
    {
      peftType: type,
      known: [...peftFamilies.keys()],
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

async function openTensors(folder: ReadableFolder): Promise<SafetensorsFile> {
  const source = await folder.open('adapter_model.safetensors');
  if (source !== undefined) return openSafetensors(source);
  if ((await folder.open('adapter_model.bin')) !== undefined) {
    throw new FormatError('adapter_model.bin is a pickle, which can run code and is not read', {
      help: 'In Python: PeftModel.from_pretrained(base, path).save_pretrained(path, safe_serialization=True).',
    });
  }
  throw new NotFoundError(`no adapter_model.safetensors in ${folder.name}`, { folder: folder.name });
}

interface SiteContent {
  readonly site: Site;
  /** Tensor names by slot. */
  readonly names: ReadonlyMap<string, string>;
  readonly shapes: StoredShapes;
}

/** What of the file goes where. */
interface Content {
  readonly sites: readonly SiteContent[];
  readonly tokens: readonly { readonly target: TokenTarget; readonly name: string }[];
  readonly parameters: readonly { readonly name: string; readonly tensor: string; readonly like: Replaceable; readonly stored: boolean }[];
}

interface MatchOptions {
  readonly strict: boolean;
  readonly warn: Warn;
}

function matchContent(
  file: SafetensorsFile,
  model: Model,
  { method, targets, statesRank }: ReadConfig,
  { strict, warn }: MatchOptions,
): Content {
  const { targeting } = method;
  const layout = layoutOf(file.names(), [...method.slots, tokensSlot]);
  const sites = targetSites(
    model.sites(() => true),
    targets,
    targeting,
    warn,
  );
  const tokenTargetsOfModel = tokenTargets(model, targeting.trainableTokens);
  const adapted = new Set(sites.map((site) => site.path));
  const wholes = replacedNames(model, adapted, targeting);
  const taken = new Set<string>();
  const missing: string[] = [];
  const take = (tensorName: string | undefined, described: string): string | undefined => {
    if (tensorName === undefined) missing.push(described);
    else taken.add(tensorName);
    return tensorName;
  };

  const matched = sites.flatMap((site) => {
    const shapes = method.stored(site);
    const found = Object.keys(shapes).map((slot) => [slot, take(layout.slots.get(site.path)?.get(slot), `${site.path}.${slot}`)] as const);
    return found.every((entry): entry is readonly [string, string] => entry[1] !== undefined)
      ? [{ site, names: new Map(found), shapes }]
      : [];
  });
  const tokens = tokenTargetsOfModel.flatMap((target) => {
    const name = take(layout.slots.get(target.sites[0]!.path)?.get(tokensSlot), `${target.sites[0]!.path}.${tokensSlot}`);
    return name === undefined ? [] : [{ target, name }];
  });
  const parameters = parametersIn(layout, model, wholes, take);
  const unexpected = file.names().filter((name) => !taken.has(name));
  if (matched.length + tokens.length + parameters.length === 0 || (strict && unexpected.length > 0 && missing.length === 0))
    throw unexpectedTensors(unexpected, model);
  if (strict && missing.length > 0) throw missingTensors(missing, unexpected);
  const skipped = [...missing, ...unexpected];
  if (skipped.length > 0) warn('skipped-tensor', `not taken from the file: ${skipped.join(', ')}`, skipped);

  checkShapes(file, { sites: matched, tokens, parameters }, model);
  for (const part of matched) checkRank(file, part, statesRank ? method.rankAt(part.site) : undefined, { strict, warn });
  return { sites: matched, tokens, parameters };
}

/** Whole parameters: those the config names, and base weights of embeddings that PEFT stores with them. */
function parametersIn(
  layout: FileLayout,
  model: Model,
  wholes: readonly string[],
  take: (tensorName: string | undefined, described: string) => string | undefined,
): Content['parameters'] {
  const known = replaceables(model);
  const embeddings = model
    .sites(() => true)
    .flatMap(({ path, point }) => (point === 'embedding' || point === 'head' ? [`${path}.weight`] : []));
  const optional = embeddings.filter((name) => !wholes.includes(name) && layout.parameters.has(name));
  return [...wholes, ...optional].flatMap((name) => {
    const tensorName = take(layout.parameters.get(name), name);
    return tensorName === undefined ? [] : [{ name, tensor: tensorName, like: known.get(name)!, stored: !wholes.includes(name) }];
  });
}

const listed = (names: readonly string[]): string =>
  `${names.slice(0, 5).join(', ')}${names.length > 5 ? ` and ${names.length - 5} more` : ''}`;

const unexpectedTensors = (unexpected: readonly string[], model: Model): UnexpectedTensorsError =>
  new UnexpectedTensorsError(
    `${unexpected.length} tensors of the file belong to nothing the config targets in this model: ${listed(unexpected)}`,
    {
      unexpected,
      base: model.info.source,
      help: 'Check that the adapter was made for this architecture; strict: false takes what fits.',
    },
  );

const missingTensors = (missing: readonly string[], unexpected: readonly string[]): MissingTensorsError =>
  new MissingTensorsError(`the file lacks ${missing.length} tensors that its config promises: ${listed(missing)}`, {
    missing,
    unexpected,
    help: 'Fetch the file again; strict: false takes what fits.',
  });

function checkShapes(file: SafetensorsFile, { sites, tokens, parameters }: Content, model: Model): void {
  const check = (name: string, path: string, expected: readonly (number | 'rank')[]): void => {
    const { dtype, shape } = file.info(name);
    if (!/^(?:F16|BF16|F32|F64|F8_.*)$/.test(dtype)) {
      throw new TensorTypeError(`'${name}' is stored as ${dtype}, an adapter holds floating point numbers`, { tensor: name, dtype, path });
    }
    const fits = shape.length === expected.length && expected.every((side, i) => side === 'rank' || side === shape[i]);
    if (fits) return;
    throw new ShapeError(`'${name}' is [${shape}] in the file, '${path}' of the model takes [${expected}]`, {
      tensor: name,
      path,
      given: shape,
      expected,
      base: model.info.source,
      help: 'The adapter was made for a base of another size or vocabulary.',
    });
  };
  for (const { site, names, shapes } of sites) for (const [slot, name] of names) check(name, site.path, shapes[slot]!);
  for (const { target, name } of tokens) check(name, target.sites[0]!.path, [target.ids.length, target.sites[0]!.weight!.shape[1]]);
  for (const { name, tensor: tensorName, like } of parameters) check(tensorName, name, like.shape);
}

function checkRank(
  file: SafetensorsFile,
  { site, names, shapes }: SiteContent,
  expected: number | undefined,
  { strict, warn }: MatchOptions,
): void {
  const ranks = [...names].flatMap(([slot, name]) =>
    file
      .info(name)
      .shape.filter((_, i) => shapes[slot]![i] === 'rank')
      .map((rank) => ({ name, rank })),
  );
  const [first] = ranks;
  const odd = ranks.find(({ rank }) => rank !== first!.rank || rank < 1);
  if (odd !== undefined)
    throw new RankError(`'${odd.name}' has rank ${odd.rank}, '${first!.name}' has ${first!.rank}`, { path: site.path, ranks });
  if (first === undefined || expected === undefined || first.rank === expected) return;
  const message = `the config gives '${site.path}' rank ${expected}, the file holds rank ${first.rank}`;
  if (strict)
    throw new RankError(message, {
      path: site.path,
      expected,
      given: first.rank,
      help: 'strict: false takes the rank of the tensors, and alpha of the config.',
    });
  warn('rank', message, [site.path]);
}

interface BuildOptions {
  readonly signal: AbortSignal | undefined;
  readonly name: string;
  readonly trainable: boolean;
  readonly warn: Warn;
  readonly warnings: readonly Warning[];
}

async function build(
  file: SafetensorsFile,
  model: Model,
  { method, targets, fields }: ReadConfig,
  content: Content,
  options: BuildOptions,
): Promise<PeftSet> {
  const { name, trainable, warn, warnings, signal } = options;
  const loose = new Set<Tensor>();
  const read = async (tensorName: string): Promise<Tensor> => {
    throwIfAborted(signal, 'loading the adapter');
    const raw = await file.read(tensorName);
    // A copy: bytes in memory are the caller's, and a device may keep what it is given.
    const value = tensor(decodeFloats(raw).slice(), [...raw.shape], 'float32');
    loose.add(value);
    return value;
  };
  const owned: Parameter[] = [];
  const own = <T extends Adapter>(adapter: T): T => {
    for (const parameter of Object.values(adapter.parameters)) {
      owned.push(parameter);
      loose.delete(parameter.read());
    }
    return adapter;
  };
  try {
    const replaced = new Map<string, Parameter>();
    const alsoStored = new Map<string, StoredBase>();
    for (const { name: parameterName, tensor: tensorName, like, stored } of content.parameters) {
      const value = await read(tensorName);
      if (stored && (await equals(value, like))) {
        alsoStored.set(parameterName, baseOf(model, parameterName));
        continue;
      }
      const parameter = replacement(parameterName, name, value, like.role, { trainable: trainable && !stored });
      loose.delete(value);
      owned.push(parameter);
      replaced.set(parameterName, parameter);
    }
    const binding: Binding = { name, draw: createDraw(0, 0), biasOf: (site) => replaced.get(`${site.path}.bias`), warn };
    const sites = new Map<string, Adapter>();
    for (const { site, names } of content.sites) {
      const tensors = new Map<string, Tensor>();
      for (const [slot, tensorName] of names) tensors.set(slot, await read(tensorName));
      sites.set(site.path, own(method.restore(site, tensors, binding)));
    }
    for (const { target, name: tensorName } of content.tokens) {
      for (const [path, adapter] of trainableTokens(target, (await read(tensorName)) as Tensor2D, name)) sites.set(path, own(adapter));
    }
    for (const parameter of owned) if (!trainable) parameter.trainable = false;
    const base = typeof fields['base_model_name_or_path'] === 'string' ? fields['base_model_name_or_path'] : model.info.source;
    for (const value of loose) value.dispose();
    return { name, method, sites, replaced, base, targets, fields, warnings, alsoStored };
  } catch (error) {
    for (const parameter of owned) parameter.dispose();
    for (const value of loose) value.dispose();
    throw error;
  }
}

async function equals(value: Tensor, like: Replaceable): Promise<boolean> {
  const current = like.copy();
  try {
    const [a, b] = [await value.data(), await current.data()];
    return a.every((number, i) => number === b[i]);
  } finally {
    current.dispose();
  }
}
