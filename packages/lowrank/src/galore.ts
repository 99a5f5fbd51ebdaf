import { checkCount, checkOneOf, checkOptions, ConfigError, descriptionOf, type Described } from '@niwaki/tensor';
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
import { spectralSubspace, type Side } from './spectral-subspace.ts';
import { inSubspace, type Pace, type Subspace } from './subspace.ts';

export interface ProjectionOptions {
  /** Dimensions kept of a gradient. A matrix whose smaller side is no larger is optimized whole. */
  readonly rank: number;
  /** Applied updates from one projection to the next; default 200. */
  readonly every?: number;
  /** Multiplies the update that comes back, α in the paper; default 0.25. */
  readonly scale?: number;
  /** 'std' (default) projects the longer side away, so that the basis is small; 'reverse' the other; 'full' both. */
  readonly projection?: 'std' | 'reverse' | Side;
  /** Paths of the matrices that are projected; default all of the role 'matrix': no embedding, no head. */
  readonly at?: string | readonly string[];
}

const projectionNames = ['rank', 'every', 'scale', 'projection', 'at'] as const;

/** What is around a projection of gradients, and inside it. */
export interface ProjectedAdamOptions extends AdamOptions {
  /** Used where no schedule is given. An entry of a projected matrix moves as Adam would at learningRate · scale. */
  readonly learningRate: number;
  /** Decoupled, default 0; of the updated value, and not scaled. */
  readonly weightDecay?: number;
  readonly groups?: readonly Group[];
  /** How the moments are stored; default '32bit'. */
  readonly state?: StateStorage;
  /** Another optimizer's direction in place of Adam's, e.g. scaleByLion(). */
  readonly direction?: Transform;
}

export const projectedAdamNames = [
  'learningRate',
  'weightDecay',
  'groups',
  'state',
  'direction',
  'beta1',
  'beta2',
  'eps',
  'correctLast',
] as const;

export interface GaloreOptions extends ProjectionOptions, ProjectedAdamOptions {}

/**
 * GaLore (Zhao et al. 2024, 2403.03507): Adam in the span of a gradient's largest singular vectors, chosen anew every 200
 * updates. Moments and step count outlive a choice. With Adam in 8 bits it is the paper's 8-bit GaLore; with
 * commit: 'eager' its per-layer update, whose gradient memory is one matrix.
 * State of a matrix of sides s ≤ l: 4·s·rank bytes for the basis, and 8·l·rank for the moments (2.03·l·rank in 8 bits)
 * against 8·s·l. Each choice costs 10 products with the gradient, and thin QR decompositions on the host.
 * @example galore({ learningRate: 0.01, rank: 128, state: '8bit' })
 */
export function galore(options: GaloreOptions): Transform {
  checkOptions('galore', options, [...projectionNames, ...projectedAdamNames]);
  const { rank, every, scale, projection, at, ...adam } = options;
  return projectedAdam('galore', adam, (inner) => projectGradients(inner, { rank, ...defined({ every, scale, projection, at }) }));
}

/** Projected Adam: a direction for each projected gradient, then decay of the updated value, then the rate. */
export function projectedAdam(
  name: string,
  { learningRate, weightDecay = 0, groups: list = [], state = '32bit', direction, ...adam }: ProjectedAdamOptions,
  project: (inner: Transform) => Transform,
): Transform {
  checkRate(name, learningRate);
  const settings = groups(list, { weightDecay });
  // The paper's AdamW adds eps before the bias correction; the 8-bit kernel it uses adds it after.
  const official = state === '32bit' ? { eps: 1e-6, correctLast: true } : {};
  const transform = chain(
    project(stateStoredAs(state, direction ?? scaleByAdam({ ...official, ...adam }))),
    addDecayedWeights(settings.weightDecay, { rateScale: settings.rateScale, order: 'after' }),
    scaleByLearningRate({ rateScale: settings.rateScale }),
  );
  return { ...transform, name, learningRate };
}

/** How a kin of GaLore differs in its projection. */
export interface ProjectionKind {
  readonly name: string;
  /** Of its own, beside those of a projection. */
  readonly options?: Described['options'];
  /** How the basis is stored. */
  readonly stored?: (subspace: Subspace) => Subspace;
  readonly pace?: Pace;
}

/** GaLore's projection around any transform that makes a direction of a gradient. */
export function projectGradients(
  inner: Transform,
  projecting: ProjectionOptions,
  { name, options, stored = (subspace) => subspace, pace }: ProjectionKind = { name: 'galore' },
): Transform {
  checkOptions(name, projecting, projectionNames);
  const { rank, every = 200, scale = 0.25, projection = 'std', at } = projecting;
  checkCount(name, 'rank', rank);
  checkOneOf(name, 'projection', projection, sides);
  const transform = inSubspace(name, inner, {
    every,
    scale,
    reset: false,
    ...(pace && { pace }),
    of: (parameter, shape) => {
      if (!takes(at === undefined ? { roles: ['matrix'] } : { at }, parameter)) return 'whole';
      if (parameter.shape.length < 2) {
        throw new ConfigError(`${name}: '${parameter.path}' [${parameter.shape}] is no matrix and cannot be projected`, {
          path: parameter.path,
          shape: parameter.shape,
          help: 'Leave it out of `at`: what is not projected gets plain Adam.',
        });
      }
      if (rank >= Math.min(...shape)) return 'whole';
      return stored(spectralSubspace(shape, { rank, side: sideOf(projection, shape) }));
    },
  });
  return { ...transform, options: { inner: descriptionOf(inner), rank, every, scale, projection, at, ...options } };
}

const sides: readonly string[] = ['std', 'reverse', 'left', 'right', 'full'];

function sideOf(projection: NonNullable<ProjectionOptions['projection']>, [rows, columns]: readonly [number, number]): Side {
  if (projection !== 'std' && projection !== 'reverse') return projection;
  return rows >= columns === (projection === 'std') ? 'right' : 'left';
}

/** The options that are given. */
export const defined = <T extends object>(options: T): { [K in keyof T]?: Exclude<T[K], undefined> } =>
  Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as { [K in keyof T]?: Exclude<T[K], undefined> };
