import {
  concat,
  ConfigError,
  denseParameter,
  gather,
  less,
  matMul,
  mul,
  range,
  ShapeError,
  slice,
  sub,
  tensor1d,
  tidy,
  where,
  withGradient,
  zeros,
  type Parameter,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import type { Call } from './call.ts';
import { observe } from './observe.ts';
import type { Weight } from './weight.ts';

/** Some of a matrix's columns or rows, in an order of their own. */
export interface Chosen {
  readonly count: number;
  /** How many there are to choose from. */
  readonly of: number;
  /** What the device holds to find them: nothing where they follow one another, else 4 · (count + of) bytes. */
  readonly parameters: Readonly<Record<string, Parameter>>;
  /** Those along an axis, a new tensor. */
  pick(x: Tensor2D, axis: 0 | 1): Tensor2D;
  /** The other way: values at their places, zeros elsewhere. */
  spread(values: Tensor2D, axis: 0 | 1): Tensor2D;
  /** A matrix with values in place of its own: a new tensor, every other entry bit for bit. */
  put(matrix: Tensor2D, values: Tensor2D, axis: 0 | 1): Tensor2D;
}

/**
 * @param path of the parameters that hold the places
 * @throws ConfigError for places outside [0, of) or given twice
 */
export function choosePlaces(path: string, places: ArrayLike<number>, of: number): Chosen {
  const list = Array.from(places);
  const count = list.length;
  const bad = list.find((place) => !Number.isInteger(place) || place < 0 || place >= of);
  if (bad !== undefined || count === 0 || new Set(list).size < count)
    throw new ConfigError(`'${path}': places are distinct whole numbers from 0 to ${of - 1}, got ${bad ?? list}`, {
      path,
      of,
      given: list,
    });
  const [from] = list as [number];
  if (list.every((place, i) => place === from + i)) return consecutive(from, count, of);
  const inverse = new Int32Array(of).fill(count);
  for (const [i, place] of list.entries()) inverse[place] = i;
  const index = denseParameter(`${path}.index`, tensor1d(list, 'int32'), { role: 'index' });
  const place = denseParameter(`${path}.place`, tensor1d(inverse, 'int32'), { role: 'index' });
  return {
    count,
    of,
    parameters: { index, place },
    pick: (x, axis) => gather(x, index.read() as Tensor1D, axis) as Tensor2D,
    // The place of what is not chosen is one past the values, where zeros are.
    spread: (values, axis) =>
      tidy(() => gather(concat([values, zeros(across(values, axis, 1))], axis), place.read() as Tensor1D, axis)) as Tensor2D,
    put: (matrix, values, axis) =>
      tidy(() => {
        const own = place.read() as Tensor1D;
        const source = where(less(own, count), own, range(count, count + of, 1, 'int32')) as Tensor1D;
        return gather(concat([values, matrix], axis), source, axis) as Tensor2D;
      }),
  };
}

function consecutive(from: number, count: number, of: number): Chosen {
  return {
    count,
    of,
    parameters: {},
    pick: (x, axis) => slice(x, axis === 0 ? [from, 0] : [0, from], across(x, axis, count)),
    spread: (values, axis) =>
      tidy(() => {
        const around = [from, of - from - count].map((side) => (side === 0 ? [] : [zeros(across(values, axis, side))]));
        return concat([...around[0]!, values, ...around[1]!], axis) as Tensor2D;
      }),
    put: (matrix, values, axis) =>
      tidy(() => {
        const part = (first: number, end: number): Tensor2D[] =>
          first === end ? [] : [slice(matrix, axis === 0 ? [first, 0] : [0, first], across(matrix, axis, end - first))];
        return concat([...part(0, from), values, ...part(from + count, of)], axis) as Tensor2D;
      }),
  };
}

const across = ({ shape: [rows, columns] }: Tensor2D, axis: 0 | 1, side: number): [number, number] =>
  axis === 0 ? [side, columns] : [rows, side];

export interface SliceOptions {
  readonly shape: readonly [out: number, in_: number];
  /** What is stored: 'columns' [out, count], or 'rows' [count, in]. */
  readonly axis: 'columns' | 'rows';
  readonly values: Parameter;
  /** What they are counted from; default 0. */
  readonly since?: Parameter;
  readonly chosen: Chosen;
  /** Factor of the whole, default 1. */
  readonly scale?: number;
}

/**
 * A matrix that is 0 outside of some columns or rows, never formed: count · out or count · in entries stored. The values
 * and places belong to whoever made them; this is a way to read them. Trained columns keep their own part of x for the
 * backward pass, 4 · count bytes a row of x; trained rows keep x.
 * @throws ShapeError for values of another shape
 */
export function sliceWeight({ shape: [out, width], axis, values, since, chosen, scale = 1 }: SliceOptions): Weight {
  const columns = axis === 'columns';
  const expected = columns ? [out, chosen.count] : [chosen.count, width];
  if (values.shape.join() !== expected.join() || chosen.of !== (columns ? width : out)) {
    throw new ShapeError(`${chosen.count} ${axis} of [${out}, ${width}] hold [${expected}], '${values.path}' is [${values.shape}]`, {
      path: values.path,
      expected,
      given: values.shape,
    });
  }
  const product = columns ? columnProduct : rowProduct;
  const counted = (value: Tensor): Tensor2D => (since === undefined ? value : sub(value, since.read())) as Tensor2D;
  const scaled = (y: Tensor2D): Tensor2D => (scale === 1 ? y : (mul(y, scale) as Tensor2D));
  const weight: Weight = {
    kind: 'slice',
    options: { axis, count: chosen.count, scale },
    shape: [out, width],
    parts: { values, ...chosen.parameters },
    apply: (x, call: Call) =>
      observe(weight, x, scaled(product(x, counted(call.value(values)), chosen, { tracked: call.tracks(values) })), call),
    dense: (rows) =>
      tidy(() => {
        const v = counted(values.read());
        const cut = (whole: Tensor2D): Tensor2D =>
          rows === undefined ? whole : slice(whole, [rows[0], 0], [rows[1] - rows[0], whole.shape[1]]);
        return scaled(columns ? chosen.spread(cut(v), 1) : cut(chosen.spread(v, 0)));
      }),
  };
  return weight;
}

/** x[:, chosen]·vᵀ for v [out, count]. */
export function columnProduct(x: Tensor2D, v: Tensor2D, { pick, spread }: Chosen, { tracked }: { tracked: boolean }): Tensor2D {
  const back = (dy: Tensor2D, values: Tensor2D): Tensor2D => tidy(() => spread(matMul(dy, values), 1));
  if (!tracked) return frozen(x, v, () => matMul(pick(x, 1), v, false, true), back);
  return withGradient(
    [x, v],
    (save) => {
      const own = pick(x, 1);
      save([own, v]);
      return matMul(own, v, false, true);
    },
    (dy, [own, values]) => [back(dy as Tensor2D, values as Tensor2D), matMul(dy as Tensor2D, own as Tensor2D, true, false)],
  ) as Tensor2D;
}

/** x·vᵀ at the chosen columns of y, for v [count, in]. */
export function rowProduct(x: Tensor2D, v: Tensor2D, { pick, spread }: Chosen, { tracked }: { tracked: boolean }): Tensor2D {
  const forward = (): Tensor2D => tidy(() => spread(matMul(x, v, false, true), 1));
  const back = (dy: Tensor2D, values: Tensor2D): Tensor2D => tidy(() => matMul(pick(dy, 1), values));
  if (!tracked) return frozen(x, v, forward, back);
  return withGradient(
    [x, v],
    (save) => {
      save([x, v]);
      return forward();
    },
    (dy, [given, values]) => [
      back(dy as Tensor2D, values as Tensor2D),
      tidy(() => matMul(pick(dy as Tensor2D, 1), given as Tensor2D, true, false)),
    ],
  ) as Tensor2D;
}

function frozen(x: Tensor2D, v: Tensor2D, forward: () => Tensor2D, back: (dy: Tensor2D, v: Tensor2D) => Tensor2D): Tensor2D {
  return withGradient(
    [x],
    (save) => {
      save([v]);
      return tidy(forward);
    },
    (dy, [saved]) => [back(dy as Tensor2D, saved as Tensor2D)],
  ) as Tensor2D;
}
