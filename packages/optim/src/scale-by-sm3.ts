import {
  add,
  checkOptions,
  ConfigError,
  div,
  gather,
  max,
  maximum,
  minimum,
  mul,
  reshape,
  scatterND,
  slice,
  sqrt,
  square,
  zeros,
  type Parameter,
  type Tensor,
} from '@niwaki/tensor';
import { beginAt } from './begin-entries.ts';
import { dense, valueOf } from './dense-update.ts';
import type { State, Transform } from './transform.ts';

export interface Sm3DirectionOptions {
  /** How much of the last direction stays, in [0, 1); default 0: none is kept. */
  readonly momentum?: number;
  /** Added under the root, default 1e-8. */
  readonly eps?: number;
}

export const sm3Names = ['momentum', 'eps'] as const;

/**
 * The direction of SM3 (Anil et al. 2019, algorithm SM3-II): a gradient over the root of its entry's accumulator, which is
 * no more than what its row and its column remember. For parameters that hold some entries of a matrix (`places`) these
 * are rows and columns of that matrix, and outlive the entries.
 * State: 4 bytes a row and a column of a matrix, 4 an entry of anything else; with momentum 4 an entry more.
 * Over places an update builds the matrix of accumulators, 4 bytes an entry of it, and keeps none of it.
 */
export function scaleBySm3(options: Sm3DirectionOptions = {}): Transform {
  checkOptions('sm3', options, sm3Names);
  const { momentum = 0, eps = 1e-8 } = options;
  if (!(momentum >= 0 && momentum < 1)) throw new ConfigError(`sm3: momentum must be in [0, 1), got ${momentum}`, { momentum });
  if (!(eps > 0)) throw new ConfigError(`sm3: eps must be above 0, got ${eps}`, { eps });
  return {
    name: 'sm3',
    options: { momentum, eps },
    layout: {
      row: { per: 'row', signed: false },
      column: { per: 'column', signed: false },
      accumulator: { per: 'entry', signed: false },
      direction: { per: 'entry', signed: true },
    },
    init: (parameter) => ({
      ...accumulators(parameter),
      ...(momentum > 0 && { direction: zeros([...parameter.shape]) }),
    }),
    update: (gradient, state, { parameter }) => {
      const value = valueOf(gradient);
      const { total, next } = accumulated(square(value), state, parameter);
      const own = div(value, sqrt(add(total, eps)));
      if (momentum === 0) return { update: dense(own), state: next };
      const direction = add(mul(own, 1 - momentum), mul(state['direction'] as Tensor, momentum));
      return { update: dense(direction), state: { ...next, direction } };
    },
    begin: (state, entries) => ({
      ...state,
      ...(state['accumulator'] !== undefined && { accumulator: beginAt(entries, state['accumulator'] as Tensor) }),
      ...(state['direction'] !== undefined && { direction: beginAt(entries, state['direction'] as Tensor) }),
    }),
  };
}

const matrixOf = ({ places, shape }: Parameter): readonly number[] => places?.shape ?? shape;

function accumulators(parameter: Parameter): State {
  const shape = matrixOf(parameter);
  if (shape.length !== 2) return { accumulator: zeros([...shape]) };
  return { row: zeros([shape[0]!]), column: zeros([shape[1]!]) };
}

/** Each entry's accumulator with its new square, and what is remembered of them. */
function accumulated(squares: Tensor, state: State, { places }: Parameter): { readonly total: Tensor; readonly next: State } {
  if (state['accumulator'] !== undefined) {
    const total = add(state['accumulator'] as Tensor, squares);
    return { total, next: { accumulator: total } };
  }
  const [row, column] = [state['row'] as Tensor, state['column'] as Tensor];
  if (places === undefined) {
    const total = add(minimum(reshape(row, [-1, 1]), reshape(column, [1, -1])), squares);
    return { total, next: { row: maximum(row, max(total, 1)), column: maximum(column, max(total, 0)) } };
  }
  const at = places.read();
  const side = (s: number): Tensor => reshape(slice(at, [0, s], [-1, 1]), [-1]);
  const total = add(minimum(gather(row, side(0)), gather(column, side(1))), squares);
  // No accumulator is below 0: rows and columns without entries keep what they have.
  const matrix = scatterND(at, total, [...places.shape]);
  return { total, next: { row: maximum(row, max(matrix, 1)), column: maximum(column, max(matrix, 0)) } };
}
