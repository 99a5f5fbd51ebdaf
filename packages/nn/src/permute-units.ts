import { ConfigError, denseParameter, gather, StateError, tensor1d, tidy, type Parameter, type Tensor2D } from '@niwaki/tensor';
import { disposeWeight, type Weight } from '@niwaki/weights';
import type { CoupledRows, Coupling } from './coupling.ts';
import type { Model, Site } from './graph.ts';

/**
 * Puts the units of a coupling in another order on both sides, so that the model gives what it gave: rows (with biases) of
 * what makes them, columns of what reads them. `coupling.order` says where each came from; what is saved afterwards is in
 * the new order. Copies of the matrices of one coupling, f32, live meanwhile.
 * @param order for each place the place of now of the unit that comes there. Where one kv head serves several query heads,
 *   groups move as a whole, and query heads inside their group
 * @throws ConfigError for an order that is none, tears groups apart, a weight that cannot be stored again without loss, or
 *   an input rounded by factors of its channels;
 *   StateError where an adapter or a set's own parameter depends on the order
 */
export async function permuteUnits(model: Model, coupling: Coupling, order: readonly number[]): Promise<void> {
  checkOrder(coupling, order);
  const { size } = coupling;
  const sides = [coupling.source, ...coupling.along].map((rows) => ({
    site: siteAt(model, rows.path),
    index: expanded(ownOrder(rows, order), size),
    axis: 0 as const,
  }));
  const readers = coupling.readers.map((path) => ({ site: siteAt(model, path), index: expanded(order, size), axis: 1 as const }));
  const all = [...sides, ...readers];
  for (const { site } of all) checkSite(model, site);
  for (const { site } of readers) checkInput(site);
  const made: { readonly site: Site; readonly weight: Weight; readonly bias?: Parameter }[] = [];
  try {
    for (const { site, index, axis } of all) made.push({ site, ...(await reordered(site, index, axis)) });
  } catch (error) {
    for (const { weight, bias } of made) {
      disposeWeight(weight);
      bias?.dispose();
    }
    throw error;
  }
  for (const { site, weight, bias } of made) model.replace(site.path, weight, bias === undefined ? {} : { bias });
  const before = coupling.order;
  coupling.order = order.map((unit) => before?.[unit] ?? unit);
}

const siteAt = (model: Model, path: string): Site => model.sites((site) => site.path === path)[0]!;

/** Rows or columns of consecutive units. */
const expanded = (units: readonly number[], size: number): Int32Array =>
  Int32Array.from({ length: units.length * size }, (_, i) => units[Math.floor(i / size)]! * size + (i % size));

/** The order of rows that serve several units each. */
const ownOrder = ({ serves }: CoupledRows, order: readonly number[]): readonly number[] =>
  Array.from({ length: order.length / serves }, (_, group) => Math.floor(order[group * serves]! / serves));

function checkOrder({ kind, units, source, along, readers }: Coupling, order: readonly number[]): void {
  if (kind === 'norm')
    throw new ConfigError(`the order of what '${source.path}' gives is that of the residual stream and cannot change`, {
      path: source.path,
    });
  const [reader] = readers;
  if (
    order.length !== units ||
    new Set(order).size !== units ||
    !order.every((unit) => Number.isInteger(unit) && unit >= 0 && unit < units)
  )
    throw new ConfigError(`an order of the ${units} ${kind} of '${reader}' lists each of 0 to ${units - 1} once`, { path: reader, order });
  for (const { path, serves } of [source, ...along]) {
    const torn = order.findIndex((unit, i) => Math.floor(unit / serves) !== Math.floor(order[i - (i % serves)]! / serves));
    if (torn < 0) continue;
    throw new ConfigError(`head ${order[torn]} would leave the group of ${serves} that shares a head of '${path}'`, {
      path,
      serves,
      at: torn,
      help: 'Move groups as a whole, and heads inside their group.',
    });
  }
}

function checkSite(model: Model, { path, weight }: Site): void {
  for (const { name, sites, replaced } of model.adapters.values()) {
    if (!sites.has(path) && !replaced.has(`${path}.weight`) && !replaced.has(`${path}.bias`)) continue;
    throw new StateError(`adapter '${name}' at '${path}' was made for the order of now`, {
      path,
      name,
      help: 'Change the order before adapters are put on, or merge them first.',
    });
  }
  if (weight?.exact === true && weight.encode !== undefined) return;
  throw new ConfigError(`'${path}' holds ${weight?.kind ?? 'no'} codes, which would lose precision in another order`, {
    path,
    kind: weight?.kind,
    help: 'Change the order of a float model, and quantize it afterwards.',
  });
}

function checkInput({ path, input }: Site): void {
  if (input?.parts['input_factors'] === undefined) return;
  throw new ConfigError(`'${path}' rounds its input by factors of channels in the order of now`, {
    path,
    help: 'Take the rounding away first, with replaceInput(path, undefined), and measure it again afterwards.',
  });
}

async function reordered({ path, weight, bias }: Site, index: Int32Array, axis: 0 | 1): Promise<{ weight: Weight; bias?: Parameter }> {
  const by = tensor1d(index, 'int32');
  const matrix = tidy(() => gather(weight!.dense(), by, axis) as Tensor2D);
  try {
    const next = await weight!.encode!(matrix, path);
    if (next.matrix !== undefined) next.matrix.trainable = weight!.matrix?.trainable ?? false;
    if (bias === undefined || axis === 1) return { weight: next };
    const { trainable } = bias;
    return { weight: next, bias: denseParameter(bias.path, gather(bias.read(), by), { role: 'bias', trainable }) };
  } finally {
    matrix.dispose();
    by.dispose();
  }
}
