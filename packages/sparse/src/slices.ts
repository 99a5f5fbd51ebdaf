import { ConfigError } from '@niwaki/tensor';
import { permuteUnits, type Coupling, type Model } from '@niwaki/nn';

/** Heads or channels of some linear maps by site path, in the numbering that the model was loaded with. */
export type Slices = Readonly<Record<string, readonly number[]>>;

/** Which side of what coupling a linear map is. */
export type SliceRole = 'output' | 'value' | 'down' | 'up';

/** A linear map whose rows or columns fall into units. */
export interface SlicedSide {
  readonly role: SliceRole;
  readonly coupling: Coupling;
  /** What of the matrix a unit is. */
  readonly axis: 'rows' | 'columns';
  /** How many there are, and rows or columns of each. */
  readonly units: number;
  readonly size: number;
}

/** @throws ConfigError for a map that is no side of a coupling of heads or channels */
export function sideOf({ couplings }: Model, path: string): SlicedSide {
  for (const coupling of couplings) {
    const { kind, units, size, source } = coupling;
    if (kind === 'norm') continue;
    const heads = kind === 'heads';
    if (source.path === path) return { role: heads ? 'value' : 'up', coupling, axis: 'rows', units: units / source.serves, size };
    if (coupling.readers.includes(path)) return { role: heads ? 'output' : 'down', coupling, axis: 'columns', units, size };
  }
  const sides = couplings.flatMap(({ kind, source, readers }) => (kind === 'norm' ? [] : [source.path, ...readers]));
  throw new ConfigError(
    `'${path}' has no heads or channels to select: it is neither the output nor the values of an attention, nor the up or down map of an MLP`,
    {
      path,
      known: sides,
      help:
        sides.length === 0
          ? 'The family of this model does not say what its maps share.'
          : `Those with some: ${[...new Set(sides.map((side) => side.slice(side.lastIndexOf('.') + 1)))].join(', ')}.`,
    },
  );
}

/** @throws ConfigError for units that are not there, or twice */
export function checkUnits(path: string, { units, role }: SlicedSide, given: readonly number[]): void {
  const bad = given.find((unit, i) => !Number.isInteger(unit) || unit < 0 || unit >= units || given.indexOf(unit) !== i);
  if (bad === undefined && given.length > 0) return;
  throw new ConfigError(
    `slices['${path}'] lists distinct ${role === 'output' || role === 'value' ? 'heads' : 'channels'} from 0 to ${units - 1}, got ${bad ?? 'none'}`,
    {
      path,
      units,
      given,
    },
  );
}

/** Where each unit is now, by its first number. */
export function positions({ axis, coupling: { order, source } }: SlicedSide): (unit: number) => number {
  if (order === undefined) return (unit) => unit;
  const serves = axis === 'rows' ? source.serves : 1;
  const at = new Map<number, number>();
  for (const [place, unit] of order.entries())
    if (!at.has(Math.floor(unit / serves))) at.set(Math.floor(unit / serves), Math.floor(place / serves));
  return (unit) => at.get(unit)!;
}

/** In the order that the model has them in. */
export function inOrder(side: SlicedSide, units: readonly number[]): readonly number[] {
  const at = positions(side);
  return [...units].sort((a, b) => at(a) - at(b));
}

/** Rows or columns of the matrix of now, unit after unit. */
export function placesOf(side: SlicedSide, units: readonly number[]): Int32Array {
  const { size } = side;
  const at = positions(side);
  return Int32Array.from({ length: units.length * size }, (_, i) => at(units[Math.floor(i / size)]!) * size + (i % size));
}

/**
 * Permutes heads and channels so that the selected ones of each map follow one another (S²FT, section 3.2): those of the
 * source alone, of both, of the reader alone, the rest. Where query heads share a kv head, groups move as a whole, and a
 * selection that tears more than two of them stays scattered.
 */
export async function arrangeSlices(model: Model, slices: Slices): Promise<void> {
  for (const coupling of model.couplings) {
    const { kind, source, readers } = coupling;
    if (kind === 'norm') continue;
    const [made, read] = [slices[source.path] ?? [], readers.flatMap((path) => slices[path] ?? [])];
    if (made.length + read.length === 0) continue;
    const order = orderOf(coupling, new Set(made), new Set(read));
    const before = coupling.order;
    const now = new Map(before?.map((unit, place) => [unit, place]));
    await permuteUnits(model, coupling, before === undefined ? order : order.map((unit) => now.get(unit)!));
  }
}

function orderOf({ units, source: { serves } }: Coupling, made: ReadonlySet<number>, read: ReadonlySet<number>): readonly number[] {
  const groups = Array.from({ length: units / serves }, (_, group) => {
    const members = Array.from({ length: serves }, (__, i) => group * serves + i);
    const chosen = members.filter((unit) => read.has(unit));
    const rest = members.filter((unit) => !read.has(unit));
    const torn = chosen.length > 0 && rest.length > 0;
    if (made.has(group)) return { rank: torn ? 1 : chosen.length === 0 ? 0 : 2, members: [...rest, ...chosen] };
    return { rank: torn ? 4 : chosen.length === 0 ? 5 : 3, members: [...chosen, ...rest] };
  });
  return groups.sort((a, b) => a.rank - b.rank).flatMap(({ members }) => members);
}
