import {
  choose,
  ConfigError,
  entryMask,
  matMul,
  mul,
  ShapeError,
  tidy,
  updateGroups,
  type Gradient,
  type GroupCodes,
  type Noise,
  type Parameter,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import { affine } from './affine.ts';
import { encodeAffine, type AffineParts } from './encode-affine.ts';
import { withMatrixGradient } from './matrix-gradient.ts';
import { rowsOfTensor } from './rows.ts';
import type { Weight } from './weight.ts';

export interface TrainedAffineOptions {
  /** Entries of a row that share a scale and a zero: a multiple of 8 that divides the row. */
  readonly groupSize: number;
  /**
   * How an update is rounded to codes: 'stochastic' (default), so that updates of less than half a step add up in
   * expectation, or to the 'nearest', where all of them are lost.
   */
  readonly rounding?: 'stochastic' | 'nearest';
}

/**
 * An affine weight of 8 bits and a zero a group whose codes train (Q-GaLore, Zhang et al. 2024): the only copy of the
 * matrix. One part more than `affine` has, `weight`: the matrix as one parameter, which takes gradients of its f32 shape and
 * commits an update by decoding, adding and encoding again group by group, over each group's new range. Products read the
 * codes, trained or not; trained, x is kept for the backward pass. Bytes an entry: 1 + 5 / groupSize.
 * @param parts codes of 8 bits with zeros (`encodeAffine` with the grid 'asymmetric')
 * @throws ConfigError where the group size is no multiple of 8
 */
export function trainedAffine(
  path: string,
  shape: readonly [number, number],
  parts: AffineParts,
  { groupSize, rounding = 'stochastic' }: TrainedAffineOptions,
): Weight {
  if (rounding !== 'stochastic' && rounding !== 'nearest') {
    throw new ConfigError(`'${path}': rounding must be 'stochastic' or 'nearest', got '${String(rounding)}'`, { path, rounding });
  }
  if (groupSize % 8 !== 0) {
    throw new ConfigError(`'${path}': codes train in groups of a multiple of 8, got ${groupSize}`, { path, groupSize });
  }
  const options = { bits: 8, groupSize, grid: 'asymmetric' } as const;
  return trainedOver(path, affine(path, shape, parts, options), { groupSize, rounding });
}

interface Built {
  readonly path: string;
  readonly base: Weight;
  readonly options: Required<TrainedAffineOptions>;
}
const built = new WeakMap<Weight, Built>();

/**
 * The same codes, whose entries outside of a mask are 0 and stay 0: the zero of a group is one of its codes, whatever its
 * range becomes. The matrix is another parameter now.
 * @param mask one bit an entry; undefined for a weight of another kind
 */
export function maskCodes(weight: Weight, mask: Parameter): Weight | undefined {
  const known = built.get(weight);
  if (known === undefined) return undefined;
  const next = trainedOver(known.path, known.base, known.options, mask);
  next.matrix!.trainable = weight.matrix!.trainable;
  next.matrix!.write(weight.dense());
  return next;
}

function trainedOver(path: string, base: Weight, settings: Required<TrainedAffineOptions>, mask?: Parameter): Weight {
  const { shape } = base;
  const { groupSize, rounding } = settings;
  const options = { bits: 8, groupSize, grid: 'asymmetric' } as const;
  const matrix = matrixOf(`${path}.weight`, base, settings, mask);
  const weight: Weight = {
    ...base,
    options: { ...options, rounding },
    parts: { ...base.parts, weight: matrix },
    matrix,
    apply: (x, call) => {
      // Read otherwise than stored (perturbed, offset): then there is a tensor for it.
      if (call.view.of(matrix).kind !== 'plain') return matMul(x, call.value(matrix) as Tensor2D, false, true);
      const y = base.apply.call(weight, x, call);
      const watched = call.watched(matrix);
      return watched === undefined ? y : withMatrixGradient(x, y, { parameter: matrix, watched, call });
    },
    lookup: (ids: Tensor1D, call) => {
      if (!call.tracks(matrix)) return base.lookup!(ids, call);
      throw new ConfigError(`'${matrix.path}' looks rows up, and its codes cannot train there`, {
        path: matrix.path,
        help: 'Leave embeddings in floats: they are optimized whole.',
      });
    },
    encode: async (dense, target) => {
      const encoded = await encodeAffine(`${target}.weight`, shape, rowsOfTensor(dense), options);
      return trainedAffine(target, shape, encoded, settings);
    },
  };
  built.set(weight, { path, base, options: settings });
  return weight;
}

function matrixOf(
  path: string,
  { shape, parts, dense }: Weight,
  { groupSize, rounding }: Required<TrainedAffineOptions>,
  mask: Parameter | undefined,
): Parameter {
  const { qweight, scales, zeros } = parts as Readonly<Record<string, Parameter>>;
  const stored = [qweight!, scales!, zeros!];
  let trainable = false;
  const codes = (): GroupCodes => ({ codes: qweight!.read(), scales: scales!.read(), zeros: zeros!.read() });
  /** Select: what a refused step must leave is there, bit for bit. */
  const put = (
    update: Tensor,
    { scale = 1, ...settings }: { shrink: number; scale?: number; noise?: Noise },
    select: (next: Tensor, old: Tensor) => Tensor,
  ): void => {
    const old = codes();
    const next = tidy(() => {
      const moved = scale === 1 ? update : mul(update, scale);
      // What is 0 gets nothing, and 0 is a code in every range.
      const kept = mask === undefined ? moved : mul(moved, entryMask(mask.read(), shape));
      const made = updateGroups(old, kept, { groupSize, ...settings });
      return [select(made.codes, old.codes), select(made.scales, old.scales), select(made.zeros, old.zeros)];
    });
    stored.forEach((part, i) => part.write(next[i]!));
  };
  return {
    path,
    shape,
    role: 'matrix',
    stored,
    ...(mask && { constraint: { mask: { bits: mask.read() } } }),
    get trainable() {
      return trainable;
    },
    set trainable(on: boolean) {
      trainable = on;
    },
    get version() {
      return qweight!.version;
    },
    bytes: () => 0,
    read: () => dense(),
    write: (value) => {
      if (value.shape.join() !== shape.join()) {
        throw new ShapeError(`parameter '${path}' is [${shape}], got [${value.shape}]`, { path, expected: shape, given: value.shape });
      }
      put(value, { shrink: 0 }, (next) => next);
      value.dispose();
    },
    commit: (update, ok, how) => {
      const noise = rounding === 'nearest' ? undefined : how?.noise;
      if (rounding === 'stochastic' && noise === undefined) {
        throw new ConfigError(`'${path}' is rounded by chance and was given no address to draw at`, {
          path,
          help: 'Commit with { noise }.',
        });
      }
      const { decay = 0, scale = 1 } = how ?? {};
      put(denseUpdate(update, path), { shrink: 1 - decay, scale, ...(noise && { noise }) }, (next, old) => choose(ok, next, old));
    },
    raw: async () => {
      const values = dense();
      const data = await values.data();
      values.dispose();
      return { dtype: 'F32', shape, bytes: new Uint8Array(data.buffer, data.byteOffset, data.byteLength) };
    },
    dispose: () => {},
  };
}

function denseUpdate(update: Gradient, path: string): Tensor {
  if (update.kind === 'dense') return update.value;
  throw new ConfigError(`'${path}' commits dense updates, got '${update.kind}'`, {
    path,
    kind: update.kind,
    help: 'Let the transform materialize the update first.',
  });
}
