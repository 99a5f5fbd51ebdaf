import { ConfigError, nearest, NotFoundError, pythonFullMatch } from '@niwaki/tensor';
import type { Site } from '@niwaki/nn';
import type { TargetOptions, Warn } from './adapter-method.ts';

/** `target_modules` of a PEFT config: a Python regular expression, 'all-linear', or names matched as dotted suffixes. */
export type TargetModules = string | readonly string[];

/** PEFT's rule for a name in a list: the whole path, or what follows one of its dots. Such names are no patterns. */
export const endsWithName = (path: string, name: string): boolean => path === name || path.endsWith(`.${name}`);

const listOf = <T>(value: T | readonly T[] | undefined): readonly T[] =>
  value === undefined ? [] : Array.isArray(value) ? value : [value as T];

/**
 * The sites a PEFT config targets, in the model's order.
 * @throws NotFoundError with the nearest names when nothing is left; FormatError for a pattern that is none
 */
export function targetSites(sites: readonly Site[], targets: TargetModules, options: TargetOptions, warn: Warn): Site[] {
  if (typeof targets === 'string') {
    if (options.layersToTransform !== undefined) {
      throw new ConfigError('layersToTransform works on a list of names, and the targets are one pattern', {
        field: 'layersToTransform',
        targets,
        help: 'Put the layers into the pattern, or list the target modules by name.',
      });
    }
    const matches = isAllLinear(targets) ? (site: Site) => site.point === 'linear' : byPattern(targets);
    return restrictSites(nonEmpty(sites.filter(matches), sites, [targets]), options, new Set(), warn);
  }
  const found = sites.filter((site) => targets.some((name) => endsWithName(site.path, name)));
  const unused = targets.filter((name) => !sites.some((site) => endsWithName(site.path, name)));
  if (found.length > 0 && unused.length > 0) warn('unused-pattern', `target modules that name nothing: ${unused.join(', ')}`, unused);
  return restrictSites(nonEmpty(found, sites, targets), options, new Set(targets), warn);
}

export const isAllLinear = (targets: TargetModules): boolean => typeof targets === 'string' && targets.toLowerCase() === 'all-linear';

function byPattern(pattern: string): (site: Site) => boolean {
  const expression = pythonFullMatch(pattern);
  return (site) => expression.test(site.path);
}

/**
 * Takes excluded modules, those saved whole, and other layers out of a selection.
 * @param whole targets given by their whole path: PEFT does not filter them by layer
 */
export function restrictSites(found: readonly Site[], options: TargetOptions, whole: ReadonlySet<string>, warn: Warn): Site[] {
  const { excludeModules, modulesToSave = [], layersToTransform } = options;
  const excluded = excluder(excludeModules);
  const kept = found.filter((site) => !excluded(site.path));
  if (excludeModules !== undefined && listOf(excludeModules).length > 0 && kept.length === found.length) {
    warn(
      'unused-exclude',
      `excludeModules takes nothing out of the selection: ${listOf(excludeModules).join(', ')}`,
      listOf(excludeModules),
    );
  }
  const separate = kept.filter((site) => !modulesToSave.some((name) => isInside(site.path, name)));
  const layers = listOf(layersToTransform);
  const chosen =
    layers.length === 0
      ? separate
      : separate.filter((site) => whole.has(site.path) || layers.includes(layerOf(site.path, options.layersPattern) ?? -1));
  if (chosen.length > 0) return chosen;
  throw new NotFoundError('every target module is taken out again by excludeModules, modulesToSave or layersToTransform', {
    targets: found.map((site) => site.path),
    excludeModules,
    modulesToSave,
    layersToTransform,
    help: 'Narrow what is taken out, or widen the targets.',
  });
}

function excluder(exclude: string | readonly string[] | undefined): (path: string) => boolean {
  if (exclude === undefined) return () => false;
  if (typeof exclude !== 'string') return (path) => exclude.some((name) => endsWithName(path, name));
  const expression = pythonFullMatch(exclude);
  return (path) => expression.test(path);
}

/** Whether a path is a named module or lies in one. */
export const isInside = (path: string, name: string): boolean => `.${path}.`.includes(`.${name}.`);

/** The layer a path belongs to: the first number that follows a container, or one of the named containers. */
export function layerOf(path: string, containers?: string | readonly string[]): number | undefined {
  const names = listOf(containers).filter((name) => name !== '');
  if (names.length === 0) return numberOf(/^.*?\.[^.]*\.(?<layer>\d+)\./.exec(path));
  for (const name of names) {
    const layer = numberOf(pythonFullMatch(`(?:.*?\\.)??(?:${name})\\.(?P<layer>\\d+)\\..*`).exec(path));
    if (layer !== undefined) return layer;
  }
  return undefined;
}

const numberOf = (match: RegExpExecArray | null): number | undefined => (match === null ? undefined : Number(match.groups!['layer']));

function nonEmpty(found: readonly Site[], sites: readonly Site[], targets: readonly string[]): readonly Site[] {
  if (found.length > 0) return found;
  const names = sites.flatMap((site) => [site.path, site.path.slice(site.path.lastIndexOf('.') + 1)]);
  const near = [...new Set(targets.flatMap((target) => nearest(target, names)))].slice(0, 3 * targets.length);
  throw new NotFoundError(`target modules ${targets.map((target) => `'${target}'`).join(', ')} match nothing in the model`, {
    targets,
    nearest: near,
    help: `Nearest names: ${near.join(', ')}.`,
  });
}

/** What the families target when a config says nothing, by Hugging Face `model_type`. */
const defaultTargets: Readonly<Record<string, readonly string[]>> = {
  llama: ['q_proj', 'v_proj'],
  mistral: ['q_proj', 'v_proj'],
  mixtral: ['q_proj', 'v_proj'],
  qwen2: ['q_proj', 'v_proj'],
  qwen3: ['q_proj', 'v_proj'],
  opt: ['q_proj', 'v_proj'],
  gpt2: ['c_attn'],
  bert: ['query', 'value'],
  roberta: ['query', 'value'],
};

/** @throws ConfigError for a family without a default */
export function defaultTargetsOf(modelType: unknown): readonly string[] {
  const targets = typeof modelType === 'string' && Object.hasOwn(defaultTargets, modelType) ? defaultTargets[modelType] : undefined;
  if (targets !== undefined) return targets;
  throw new ConfigError(`models of type '${String(modelType)}' have no default target modules`, {
    modelType,
    known: Object.keys(defaultTargets),
    help: 'Please specify target_modules.',
  });
}
