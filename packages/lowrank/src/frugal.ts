import {
  abs,
  checkFlag,
  checkOneOf,
  checkOptions,
  ConfigError,
  descriptionOf,
  greater,
  max,
  mul,
  outOfRange,
  sub,
  where,
  zerosLike,
  type Parameter,
  type Tensor2D,
} from '@niwaki/tensor';
import {
  addDecayedWeights,
  chain,
  checkRate,
  groups,
  scaleByAdam,
  scaleByLearningRate,
  stateStoredAs,
  takes,
  type AdamOptions,
  type Group,
  type StateStorage,
  type Transform,
} from '@niwaki/optim';
import { coordinateSubspace, type Coordinates } from './coordinate-subspace.ts';
import { spectralSubspace } from './spectral-subspace.ts';
import { projectedAdamNames } from './galore.ts';
import { inSubspace, type Subspace } from './subspace.ts';
import { inTurns, type TurnOrder } from './turns.ts';

export interface SplitOptions {
  /** Part of each matrix that has state, in [0, 1]; default 0.25. 0: none has. */
  readonly density?: number;
  /** Applied updates from one choice of that part to the next; default 200. */
  readonly every?: number;
  /**
   * What has state: 'columns' (default), 'rows' or single 'entries' drawn by chance, the gradient's 'singular' vectors, or
   * 'random' ones; or whole matrices, 'blocks', which take turns.
   */
  readonly split?: Coordinates | 'singular' | 'random' | 'blocks';
  /** Of blocks: 'random' (default), from the last to the first ('descending'), 'ascending', or from both ends ('mirror'). */
  readonly order?: TurnOrder;
  /** What the rest of a gradient does: its 'sign' (default), itself ('sgd'), or 'none'. */
  readonly rest?: 'sign' | 'sgd' | 'none';
  /** Times the rest; default 1. 0.1 for fine-tuning. */
  readonly restScale?: number;
  /** Times the whole update of such a matrix; default 1. */
  readonly scale?: number;
  /** Default true: a new choice starts the moments and their bias correction anew. */
  readonly reset?: boolean;
  /** Paths of the matrices that are split; default all of the role 'matrix': no embedding, no head. */
  readonly at?: string | readonly string[];
}

const splitNames = ['density', 'every', 'split', 'order', 'rest', 'restScale', 'scale', 'reset', 'at'] as const;

export interface FrugalOptions extends SplitOptions, AdamOptions {
  /** Used where no schedule is given. */
  readonly learningRate: number;
  /** Decoupled, default 0. */
  readonly weightDecay?: number;
  readonly groups?: readonly Group[];
  /** How the moments are stored; default '32bit'. */
  readonly state?: StateStorage;
  /** Another optimizer's direction in place of Adam's, e.g. scaleByLion(). */
  readonly direction?: Transform;
}

/**
 * FRUGAL (Zmushko et al. 2024, 2411.07837): Adam for a part of each matrix, signSGD for the rest, so that no direction of a
 * gradient is thrown away. The part changes every 200 updates. With columns nothing is decomposed and nothing multiplied;
 * with 'blocks' whole matrices take turns.
 * State: 8 · density bytes an entry of the matrices, or 2.03 · density in 8 bits.
 * @example frugal({ learningRate: 1e-3, density: 0.25 })
 */
export function frugal(options: FrugalOptions): Transform {
  checkOptions('frugal', options, [...splitNames, ...projectedAdamNames]);
  const { learningRate, weightDecay = 0, groups: list = [], state = '32bit', direction, ...rest } = options;
  const { density, every, split, order, rest: rule, restScale, scale, reset, at, ...adam } = rest;
  checkRate('frugal', learningRate);
  const settings = groups(list, { weightDecay });
  const given = Object.entries({ density, every, split, order, rest: rule, restScale, scale, reset, at }).filter(
    ([, value]) => value !== undefined,
  );
  const transform = chain(
    splitGradients(stateStoredAs(state, direction ?? scaleByAdam(adam)), Object.fromEntries(given)),
    addDecayedWeights(settings.weightDecay, { rateScale: settings.rateScale }),
    scaleByLearningRate({ rateScale: settings.rateScale }),
  );
  return { ...transform, name: 'frugal', learningRate };
}

const splits: readonly string[] = ['columns', 'rows', 'entries', 'singular', 'random', 'blocks'];
const orders: readonly string[] = ['random', 'descending', 'ascending', 'mirror'];
const rules: readonly string[] = ['sign', 'sgd', 'none'];

/** FRUGAL's split around any transform that makes a direction of a gradient. */
export function splitGradients(inner: Transform, options: SplitOptions = {}): Transform {
  checkOptions('frugal', options, splitNames);
  const { density = 0.25, every = 200, split = 'columns', rest = 'sign', restScale = 1, scale = 1, reset = true, order, at } = options;
  if (!(density >= 0 && density <= 1)) throw outOfRange('frugal', 'density', density, 'in [0, 1]');
  if (!(restScale >= 0 && restScale < Infinity)) throw outOfRange('frugal', 'restScale', restScale, 'a finite number of at least 0');
  checkOneOf('frugal', 'split', split, splits);
  checkOneOf('frugal', 'rest', rest, rules);
  checkFlag('frugal', 'reset', reset);
  checkOrder(split, order, reset);
  const given = { every, scale, ...(rest !== 'none' && { rest: { rule: rest, scale: restScale } }) };
  const isSplit = (parameter: Parameter): boolean => {
    if (!takes(at === undefined ? { roles: ['matrix'] } : { at }, parameter)) return false;
    checkSplittable(parameter, split);
    return true;
  };
  const transform =
    split === 'blocks'
      ? inTurns('frugal', inner, {
          ...given,
          of: isSplit,
          order: order ?? 'random',
          active: (count) => roundHalfEven(density * count),
        })
      : inSubspace('frugal', inner, {
          ...given,
          reset,
          of: (parameter, shape) => (isSplit(parameter) ? subspaceOf(shape, { density, split }) : 'whole'),
        });
  return {
    ...transform,
    options: { inner: descriptionOf(inner), density, every, split, rest, restScale, scale, reset, order, at },
  };
}

function subspaceOf(
  shape: readonly [number, number],
  { density, split }: { density: number; split: Exclude<NonNullable<SplitOptions['split']>, 'blocks'> },
): Subspace | 'none' {
  const [rows, columns] = shape;
  if (split === 'columns' || split === 'rows' || split === 'entries') {
    const total = { columns, rows, entries: rows * columns }[split];
    const count = Math.floor(total * density);
    return count === 0 ? 'none' : coordinateSubspace(shape, { over: split, count });
  }
  const rank = roundHalfEven(density * Math.min(rows, columns));
  if (rank === 0) return 'none';
  const side = rows >= columns ? 'right' : 'left';
  const spectral = spectralSubspace(shape, { rank, side, from: split === 'singular' ? 'gradient' : 'chance' });
  return {
    ...spectral,
    // What should cancel leaves rounding, of which signs would make whole steps.
    rest: (gradient, at) => {
      const left = sub(gradient, spectral.up(spectral.down(gradient, at), at));
      return where(greater(abs(left), mul(max(abs(gradient)), 1e-6)), left, zerosLike(left)) as Tensor2D;
    },
  };
}

/** 2.5 is 2: as Python rounds the ranks of saved configurations. */
function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2) : Math.round(value);
}

function checkOrder(split: string, order: string | undefined, reset: boolean): void {
  if (split !== 'blocks') {
    if (order === undefined) return;
    throw new ConfigError(`frugal: order is for split 'blocks', got '${order}' for '${split}'`, { order, split });
  }
  if (order !== undefined) checkOneOf('frugal', 'order', order, orders);
  if (!reset) {
    throw new ConfigError('frugal: blocks that take turns begin anew each time, so reset cannot be false', {
      split,
      reset,
      help: 'Drop `reset`.',
    });
  }
}

function checkSplittable({ path, role, shape }: Parameter, split: string): void {
  if (split === 'blocks' || (shape.length >= 2 && (role === 'matrix' || role === 'values'))) return;
  throw new ConfigError(`frugal: '${path}' (${role}, [${shape}]) cannot be split by ${split}`, {
    path,
    role,
    help: 'Leave it out of `at`: embeddings, norms and heads get the optimizer inside.',
  });
}
