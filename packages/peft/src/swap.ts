import { checkCall, checkOptions, ConfigError, pad, ShapeError, tidy, zerosLike, type Parameter, type Tensor } from '@niwaki/tensor';
import { aModel, type Adapter, type AdapterSet, type Model } from '@niwaki/nn';
import { isPeftSet, type PeftSet } from './adapter-method.ts';
import { RankError } from './files/errors.ts';
import type { AdapterSource } from './files/folders.ts';
import { loadAdapter, type LoadAdapterOptions } from './files/load.ts';
import { adapterNamed, disposeSet } from './manage.ts';

export type SwapOptions = Pick<LoadAdapterOptions, 'strict' | 'base' | 'types' | 'signal' | 'onWarning'>;

/**
 * Gives an attached adapter the values of another one of its kind, a set or a file: the parameters stay the same ones, of
 * the same shapes, so that nothing is built or compiled again. Each site computes what the other adapter computes there,
 * its own rank and alpha (or its patterns') included: factors of a lower rank are filled up with zeros, which training
 * leaves at zero. Sites that the other adapter has not are turned off. The strength stays; so does what an optimizer
 * knows of the old values.
 * @param source a set stays the caller's; a file is read whole first, and lives twice for a moment
 * @throws RankError for a higher rank than there is room for; ConfigError, ShapeError where the two do not fit; what
 *   `loadAdapter` throws. The adapter is as it was then
 * @example await swapAdapter(model, 'default', './another-adapter');
 */
export async function swapAdapter(
  model: Model,
  name: string,
  source: AdapterSet | AdapterSource,
  options: SwapOptions = {},
): Promise<void> {
  checkCall("swapAdapter(model, 'default', './another-adapter')", { model: [model, aModel] });
  checkOptions('swapAdapter', options, ['strict', 'base', 'types', 'signal', 'onWarning']);
  const target = adapterNamed(model, name);
  if (isSet(source)) return swapValues(target, source);
  const other = await loadAside(model, source, options);
  try {
    await swapValues(target, other);
  } finally {
    disposeSet(other);
  }
}

const isSet = (source: AdapterSet | AdapterSource): source is AdapterSet =>
  typeof source === 'object' && 'sites' in source && 'replaced' in source;

/** Under a name that nobody has, and off the model again: it was never active beside the one to be changed. */
async function loadAside(model: Model, source: AdapterSource, options: SwapOptions): Promise<PeftSet> {
  let name = 'swapped-in';
  while (model.adapters.has(name)) name = `${name}-`;
  const set = await loadAdapter(model, source, { ...options, name });
  model.detach(name);
  return set;
}

async function swapValues(target: AdapterSet, source: AdapterSet): Promise<void> {
  checkSame(target, source);
  const from = new Map<Parameter, Parameter | undefined>();
  for (const [path, own] of target.sites) {
    for (const [parameter, value] of await pairsOf(path, own, source.sites.get(path))) from.set(parameter, value);
  }
  for (const [path, own] of target.replaced) {
    checkShape(own, source.replaced.get(path)!);
    from.set(own, source.replaced.get(path)!);
  }
  const values = new Map<Parameter, Tensor>();
  for (const [parameter, value] of from)
    values.set(
      parameter,
      tidy(() => fitted(parameter, value?.read())),
    );
  for (const [parameter, value] of values) parameter.write(value);
  if (isPeftSet(target)) target.method = target.method.takeOver?.(target, source.sites) ?? target.method;
}

function checkSame(target: AdapterSet, source: AdapterSet): void {
  const { name } = target;
  const unknown = [...source.sites.keys()].filter((path) => !target.sites.has(path));
  if (unknown.length > 0)
    throw new ConfigError(`adapter '${name}' has no place for what the other one does at ${unknown.slice(0, 4).join(', ')}`, {
      name,
      paths: unknown,
      help: 'Load the other one beside it, or begin with an adapter at all sites that any of them has.',
    });
  const wholes = [...new Set([...target.replaced.keys(), ...source.replaced.keys()])];
  const odd = wholes.filter((path) => !target.replaced.has(path) || !source.replaced.has(path));
  if (odd.length > 0)
    throw new ConfigError(`one of the adapters replaces ${odd.join(', ')} whole, and the other does not`, { name, paths: odd });
}

/** Parameters of a site by what they shall hold; undefined: zeros. */
async function pairsOf(path: string, own: Adapter, other: Adapter | undefined): Promise<Map<Parameter, Parameter | undefined>> {
  for (const adapter of [own, other]) {
    if (adapter?.startsFrom !== 'rewritten') continue;
    throw new ConfigError(`'${path}' has an adapter for a base that was rewritten with it, which no other values fit`, {
      path,
      help: 'Load it in the form that saveAdapter writes for the original base.',
    });
  }
  if (other === undefined) return new Map(switchedOff(path, own).map((parameter) => [parameter, undefined]));
  if (own.kind !== other.kind)
    throw new ConfigError(`'${path}' has an adapter of kind ${own.kind}, the other one is ${other.kind}`, {
      path,
      kinds: [own.kind, other.kind],
    });
  const slots = (adapter: Adapter): string[] =>
    Object.keys(adapter.parameters).filter((slot) => adapter.parameters[slot]!.role !== 'statistic');
  const odd = [...new Set([...slots(own), ...slots(other)])].find((slot) => !own.parameters[slot] || !other.parameters[slot]);
  if (odd !== undefined) throw new ConfigError(`only one of the adapters at '${path}' has ${odd}`, { path, slot: odd });
  const pairs = new Map<Parameter, Parameter>();
  for (const slot of slots(own)) {
    const [parameter, value] = [own.parameters[slot]!, other.parameters[slot]!];
    if (parameter.role !== 'index') {
      checkShape(parameter, value);
      pairs.set(parameter, value);
    } else if (!(await sameNumbers(parameter, value))) {
      throw new ConfigError(`the adapters at '${path}' train different rows or entries, and no value of one fits the other`, {
        path,
        slot,
      });
    }
  }
  return pairs;
}

/** What to zero, so that an additive adapter adds nothing; of a product B alone, which can then train again. */
function switchedOff(path: string, own: Adapter): Parameter[] {
  if (own.delta === undefined)
    throw new ConfigError(`the other adapter has none at '${path}', and ${own.kind} there cannot be turned off by its values`, {
      path,
      kind: own.kind,
    });
  const values = Object.values(own.parameters).filter(({ role }) => role !== 'index' && role !== 'statistic');
  const last = values.filter(({ role }) => role === 'adapterB');
  return last.length > 0 ? last : values;
}

async function sameNumbers(a: Parameter, b: Parameter): Promise<boolean> {
  const [one, two] = [await a.read().data(), await b.read().data()];
  return one.length === two.length && one.every((value, i) => value === two[i]);
}

/** @throws RankError, ShapeError where a value neither fits nor can be filled up with zeros along its rank */
function checkShape(own: Parameter, other: Parameter): void {
  const axes = own.shape.map((_, i) => i).filter((i) => own.shape[i] !== other.shape[i]);
  if (axes.length === 0 && own.shape.length === other.shape.length) return;
  const factor = own.role === 'adapterA' || own.role === 'adapterB';
  if (!factor || axes.length !== 1 || own.shape.length !== other.shape.length) {
    throw new ShapeError(`'${own.path}' is [${own.shape}], the other adapter's [${other.shape}]`, {
      path: own.path,
      expected: own.shape,
      given: other.shape,
    });
  }
  const [rank, given] = [own.shape[axes[0]!]!, other.shape[axes[0]!]!];
  if (given < rank) return;
  throw new RankError(`'${own.path}' has rank ${rank}, the other adapter needs ${given}`, {
    path: own.path,
    expected: rank,
    given,
    help: 'Begin with the adapter of the highest rank, or load this one beside it.',
  });
}

function fitted({ shape, read }: Parameter, value: Tensor | undefined): Tensor {
  if (value === undefined) return zerosLike(read());
  return value.shape.join() === shape.join()
    ? value.clone()
    : pad(
        value,
        shape.map((side, i): [number, number] => [0, side - value.shape[i]!]),
      );
}
