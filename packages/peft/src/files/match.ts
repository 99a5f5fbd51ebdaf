import type { SafetensorsFile } from '@niwaki/hub';
import { ShapeError } from '@niwaki/tensor';
import type { Model, Site } from '@niwaki/nn';
import type { ReadConfig } from '../adapter-file.ts';
import type { StoredShapes, Warn } from '../adapter-method.ts';
import { targetSites } from '../targets.ts';
import { tokensSlot, tokenTargets, type TokenTarget } from '../trainable-tokens.ts';
import { replaceables, replacedNames, type Replaceable } from '../whole-modules.ts';
import { MissingTensorsError, RankError, TensorTypeError, UnexpectedTensorsError } from './errors.ts';
import { layoutOf, type FileLayout } from './keys.ts';

export interface SiteContent {
  readonly site: Site;
  /** Tensor names by slot. */
  readonly names: ReadonlyMap<string, string>;
  readonly shapes: StoredShapes;
}

/** What of the file goes where. */
export interface Content {
  readonly sites: readonly SiteContent[];
  /** Tensors of all sites at once, and those sites. */
  readonly shared?:
    | { readonly sites: readonly Site[]; readonly names: ReadonlyMap<string, string>; readonly shapes: StoredShapes }
    | undefined;
  readonly tokens: readonly { readonly target: TokenTarget; readonly name: string }[];
  readonly parameters: readonly { readonly name: string; readonly tensor: string; readonly like: Replaceable; readonly stored: boolean }[];
}

interface MatchOptions {
  readonly strict: boolean;
  readonly warn: Warn;
}

/**
 * Finds the place of every tensor, and refuses what has none, before anything is read.
 * @throws MissingTensorsError, UnexpectedTensorsError, TensorTypeError, ShapeError, RankError
 */
export function matchContent(
  file: SafetensorsFile,
  model: Model,
  { method, targets, statesRank }: ReadConfig,
  { strict, warn }: MatchOptions,
): Content {
  const { targeting } = method;
  const layout = layoutOf(file.names(), [...method.slots, tokensSlot]);
  const sites = targetSites(
    model.sites(() => true, { points: method.points }),
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

  const shared = sharedIn(layout, method.shared?.stored(sites, model), take);
  const matched = sites.flatMap((site) => {
    const shapes = method.stored(site, model);
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
  const nothing = matched.length + tokens.length + parameters.length === 0 && shared === undefined;
  if (taken.size === 0 || (strict && unexpected.length > 0 && missing.length === 0)) throw unexpectedTensors(unexpected, model);
  if (missing.length > 0 && (strict || nothing)) throw missingTensors(missing, unexpected);
  const skipped = [...missing, ...unexpected];
  if (skipped.length > 0) warn('skipped-tensor', `not taken from the file: ${skipped.join(', ')}`, skipped);

  const content: Content = { sites: matched, tokens, parameters, shared: shared && { sites: matched.map(({ site }) => site), ...shared } };
  checkShapes(file, content, model, new Set(Object.keys(method.integers ?? {})));
  for (const part of matched) checkRank(file, part, statesRank ? method.rankAt(part.site) : undefined, { strict, warn });
  return content;
}

type Take = (tensorName: string | undefined, described: string) => string | undefined;

function sharedIn(
  layout: FileLayout,
  shapes: StoredShapes | undefined,
  take: Take,
): { readonly names: ReadonlyMap<string, string>; readonly shapes: StoredShapes } | undefined {
  if (shapes === undefined) return undefined;
  const found = Object.keys(shapes).map((slot) => [slot, take(layout.parameters.get(slot), slot)] as const);
  return found.every((entry): entry is readonly [string, string] => entry[1] !== undefined) ? { names: new Map(found), shapes } : undefined;
}

/** Whole parameters: those the config names, and base weights of embeddings that PEFT stores with them. */
function parametersIn(layout: FileLayout, model: Model, wholes: readonly string[], take: Take): Content['parameters'] {
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

function checkShapes(
  file: SafetensorsFile,
  { sites, tokens, parameters, shared }: Content,
  model: Model,
  integers: ReadonlySet<string>,
): void {
  const check = (name: string, path: string, expected: readonly (number | 'rank')[], { whole = false } = {}): void => {
    const { dtype, shape } = file.info(name);
    if (!(whole ? /^I32$/ : /^(?:F16|BF16|F32|F64|F8_.*)$/).test(dtype)) {
      const holds = whole ? 'this one holds 32-bit integers' : 'an adapter holds floating point numbers';
      throw new TensorTypeError(`'${name}' is stored as ${dtype}, ${holds}`, { tensor: name, dtype, path });
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
  for (const { site, names, shapes } of sites)
    for (const [slot, name] of names) check(name, site.path, shapes[slot]!, { whole: integers.has(slot) });
  for (const [slot, name] of shared?.names ?? []) check(name, slot, shared!.shapes[slot]!);
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
