import {
  ConfigError,
  FormatError,
  integerMatMul,
  NumericError,
  packedRows,
  range,
  tidy,
  type FrozenMatrix,
  type PackedShape,
  type PackedTensors,
  type Parameter,
  type Range,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import type { Call } from './call.ts';
import { asProduct } from './frozen.ts';
import { observe } from './observe.ts';
import type { Weight } from './weight.ts';

/** A stored part under the name the packed ops give it. */
export type PackedParameters = { readonly [K in keyof PackedTensors]: Parameter };

/** What stands between the columns of a linear map and those of the matrix stored for it: y = stored · into(x). */
export interface ColumnMap {
  into(x: Tensor2D, call: Call): Tensor2D;
  /** Rows of the stored matrix as rows of the linear map: the same map, transposed. */
  back(rows: Tensor2D): Tensor2D;
}

const sameColumns: ColumnMap = { into: (x) => x, back: (rows) => rows };

/** A matrix whose columns stand as they are stored, by the names that the packed ops read its parts by. */
export interface PackedForm {
  readonly shape: PackedShape;
  readonly parameters: PackedParameters;
}

/** By the function, not by the weight: whoever puts another `apply` in its place leaves this behind. */
const forms = new WeakMap<Weight['apply'], PackedForm>();

/** Undefined for a weight of another kind, or with columns to rearrange. */
export const packedForm = (weight: Weight): PackedForm | undefined => forms.get(weight.apply);

/** What every packed weight does alike: products, lookups and dense rows straight from the stored parts. */
export function packedReads(
  shape: PackedShape,
  parameters: PackedParameters,
  columns: ColumnMap = sameColumns,
): Pick<Weight, 'apply' | 'dense' | 'lookup'> {
  const stored = (): PackedTensors => mapped(parameters, (parameter) => parameter.read());
  const read = (call: Call): PackedTensors => readParts(parameters, call);
  const apply = asProduct(
    function (this: Weight, x, call) {
      return observe(this, x, integerMatMul(columns.into(x, call), read(call), shape, call), call);
    },
    (_, call) => {
      if (columns !== sameColumns || (call.activations ?? 'exact') !== 'exact') return undefined;
      return { parts: read(call) as FrozenMatrix['parts'], packed: shape };
    },
  );
  if (columns === sameColumns) forms.set(apply, { shape, parameters });
  return {
    apply,
    dense: (rows: Range = [0, shape.out]) =>
      tidy(() => columns.back(packedRows(range(rows[0], rows[1], 1, 'int32') as Tensor1D, stored(), shape))),
    lookup: (ids: Tensor1D, call: Call): Tensor2D => columns.back(packedRows(ids, read(call), shape)),
  };
}

/** Stored parts as the call reads them; @throws ConfigError where a gradient is asked for. */
export const readParts = (parameters: PackedParameters, call: Call): PackedTensors =>
  mapped(parameters, (parameter) => untracked(parameter, call));

/** A stored part as the call reads it; @throws ConfigError where a gradient is asked for. */
export function untracked(parameter: Parameter, call: Call): ReturnType<Parameter['read']> {
  if (!call.tracks(parameter)) return call.value(parameter);
  throw new ConfigError(`'${parameter.path}' is part of a packed weight, through which no gradient flows`, {
    path: parameter.path,
    role: parameter.role,
    help: 'Train an adapter on this weight, or estimate its scales with a zeroth-order method.',
  });
}

function mapped<T>(parameters: PackedParameters, value: (parameter: Parameter) => T): { readonly [K in keyof PackedParameters]: T } {
  // A loop, not entries: this runs for each product of each token.
  const values: Record<string, T> = {};
  for (const name of Object.keys(parameters)) values[name] = value(parameters[name as keyof PackedParameters]!);
  return values as { readonly [K in keyof PackedParameters]: T };
}

/** Refuses a stored part of the wrong length before anything is allocated for it. */
export function expectLength(path: string, part: ArrayLike<unknown> | undefined, expected: number): void {
  if (part?.length === expected) return;
  throw new FormatError(`'${path}' must hold ${expected} values, ${part === undefined ? 'and is absent' : `got ${part.length}`}`, {
    path,
    expected,
    given: part?.length,
    help: 'The file is damaged, or its shape and its data disagree.',
  });
}

/** What a matrix that cannot be quantized is refused with. */
export const notFinite = (name: string, value: number, at: readonly [row: number, column: number]): NumericError =>
  new NumericError(`'${name}' holds ${value} at [${at}]: it cannot be quantized`, {
    path: name,
    at,
    value,
    help: 'Repair the checkpoint, or leave this matrix out.',
  });
