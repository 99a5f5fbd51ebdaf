import { ConfigError, denseParameter, nearest, NotFoundError, type Parameter, type Role, type Tensor } from '@niwaki/tensor';
import type { Model, Site } from '@niwaki/nn';
import type { TargetOptions } from './adapter-method.ts';

/** A whole parameter of the model as a set may replace it, by Hugging Face name. */
export interface Replaceable {
  readonly role: Role;
  readonly shape: readonly number[];
  /** A new f32 tensor. */
  copy(): Tensor;
}

/** Every parameter of the base that a set may replace: weights and biases of sites (dense, whatever they are stored as), norms. */
export function replaceables(model: Model): Map<string, Replaceable> {
  const sites = model.stages().flatMap((stage) => stage.sites);
  const found = new Map<string, Replaceable>();
  for (const { path, point, weight, bias } of sites) {
    if (weight !== undefined) {
      const role = point === 'embedding' ? 'embedding' : point === 'head' ? 'head' : 'matrix';
      found.set(`${path}.weight`, { role, shape: weight.shape, copy: () => weight.dense() });
    }
    if (bias !== undefined) found.set(`${path}.bias`, { role: 'bias', shape: bias.shape, copy: () => bias.read().clone() });
  }
  const taken = new Set([
    ...sites.flatMap(({ weight, bias }) => [...Object.values(weight?.parts ?? {}), bias]),
    ...adapterParameters(model),
  ]);
  for (const [path, parameter] of model.parameters()) {
    if (!taken.has(parameter)) found.set(path, { role: parameter.role, shape: parameter.shape, copy: () => parameter.read().clone() });
  }
  return found;
}

/** Parameters of every attached set. */
export const adapterParameters = (model: Model): Parameter[] =>
  [...model.adapters.values()].flatMap((set) => [
    ...[...set.sites.values()].flatMap((adapter) => Object.values(adapter.parameters)),
    ...set.replaced.values(),
  ]);

// PEFT lists both names for classifiers; a model has one of them.
const headNames: ReadonlySet<string> = new Set(['classifier', 'score']);

/**
 * Whether a module is saved whole, by PEFT's rule: its path, or that of a module around it, ends with the name. Letters
 * count, not dots: `norm` names every norm of a Llama, `model.norm` the last one.
 */
const isSavedWhole = (module: string, names: readonly string[]): boolean => {
  const segments = module.split('.');
  return segments.some((_, i) =>
    names.some((name) =>
      segments
        .slice(0, i + 1)
        .join('.')
        .endsWith(name),
    ),
  );
};

/**
 * Names of the parameters that `modulesToSave` and `bias` make trainable.
 * @param adapted paths of the sites that get an adapter
 * @throws NotFoundError for a module that is not there, which PEFT accepts without a word
 */
export function replacedNames(model: Model, adapted: ReadonlySet<string>, { modulesToSave = [], bias = 'none' }: TargetOptions): string[] {
  const names = [...replaceables(model).keys()];
  const moduleOf = (name: string): string => name.slice(0, name.lastIndexOf('.'));
  const missing = modulesToSave.filter((module) => !names.some((name) => isSavedWhole(moduleOf(name), [module])));
  const wrong = missing.filter(
    (module) => !(headNames.has(module) && modulesToSave.some((other) => headNames.has(other) && !missing.includes(other))),
  );
  if (wrong.length > 0) {
    const near = [
      ...new Set(
        wrong.flatMap((module) =>
          nearest(
            module,
            names.map(moduleOf).flatMap((path) => [path, path.slice(path.lastIndexOf('.') + 1)]),
          ),
        ),
      ),
    ];
    throw new NotFoundError(`modulesToSave names nothing in the model: ${wrong.join(', ')}`, {
      names: wrong,
      nearest: near,
      help: `Nearest names: ${near.join(', ')}.`,
    });
  }
  const trainsBias = (name: string): boolean =>
    name.endsWith('.bias') && (bias === 'all' || (bias === 'lora_only' && adapted.has(moduleOf(name))));
  return names.filter((name) => trainsBias(name) || isSavedWhole(moduleOf(name), modulesToSave));
}

/** Trainable copies of the named parameters, for one set: 4 bytes an entry. */
export function copyParameters(model: Model, names: readonly string[], setName: string): Map<string, Parameter> {
  const all = replaceables(model);
  return new Map(names.map((name) => [name, replacement(name, setName, all.get(name)!.copy(), all.get(name)!.role, { trainable: true })]));
}

/** A parameter that stands in for the model's own while its set is active. It takes the tensor over. */
export function replacement(name: string, setName: string, value: Tensor, role: Role, { trainable }: { trainable: boolean }): Parameter {
  const dot = name.lastIndexOf('.');
  return denseParameter(`${name.slice(0, dot)}.modules_to_save.${setName}${name.slice(dot)}`, value, { role, trainable });
}

/** @throws ConfigError when a module is to be saved whole and to train single rows */
export function refuseWholeAndRows(sites: readonly Site[], { modulesToSave = [] }: TargetOptions): void {
  for (const { path } of sites) {
    const module = modulesToSave.find((name) => isSavedWhole(path, [name]));
    if (module === undefined) continue;
    throw new ConfigError(`'${path}' is trained whole (modulesToSave) and by rows (trainableTokens)`, {
      path,
      module,
      help: 'Choose one of the two.',
    });
  }
}
