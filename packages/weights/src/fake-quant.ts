import {
  clipByValue,
  ConfigError,
  denseParameter,
  div,
  fill,
  matMul,
  mul,
  packBits,
  roundedUp,
  runOp,
  settledCodes,
  ShapeError,
  slice,
  softRound,
  softRoundGradient,
  sum,
  tensor1d,
  tidy,
  undecidedGradOp,
  undecidedOp,
  withGradient,
  type Parameter,
  type Range,
  type Scalar,
  type SoftCodesInputs,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import { affineGroupSize, checkAffine, isSymmetric } from './affine-grid.ts';
import { affine, type AffineOptions } from './affine.ts';
import type { Call } from './call.ts';
import { scaleColumns } from './columns.ts';
import { observe } from './observe.ts';
import { expectLength, untracked } from './packed.ts';
import type { Weight } from './weight.ts';

export interface FakeQuantOptions extends Required<AffineOptions> {
  /** Largest |w| the codes are chosen for: entries of the base beyond it are cut. Default: none is. */
  readonly bound?: number;
}

export interface FakeQuantParts {
  /** Steps, one a group: [out · in / groupSize]. */
  readonly scales: Float32Array;
  /** The code that stands for 0, one a group; absent where the grid has none of its own. */
  readonly zeros?: Uint8Array;
  /** Factors on the columns of the input; the matrix is divided by them before it is rounded. */
  readonly inputScales?: Float32Array;
  /** What is added to the logit of each entry's rounding: one tensor [out, in], or factors [out, rank] and [rank, in]. Taken over. */
  readonly rounding: Tensor2D | { readonly a: Tensor2D; readonly b: Tensor2D };
}

/** A matrix that is being fitted to its codes. */
export interface FakeQuant extends Weight {
  /** What trains: the steps, a group each; and the rounding, one parameter or two factors. */
  readonly steps: Parameter;
  readonly rounding: readonly Parameter[];
  /** How far each entry is rounded up from the code below, [out, in] in [0, 1]. */
  roundedUp(): Tensor2D;
  /** Mean over the entries of 1 - |2h - 1|^sharpness for h of `roundedUp`: 0 where all are decided. Trains the rounding alone. */
  undecided(call: Call, sharpness: number): Scalar;
  /** The codes nearest to what it is now, as an affine weight with parts of its own. */
  settle(): Promise<Weight>;
}

const leastScale = 1e-8;

/**
 * Codes of 2, 3, 4 or 8 bits that are not decided yet, over a float matrix: value = s · (clamp(⌊w/s⌋ + h + zero) - zero),
 * with h in [0, 1] for each entry, after AdaRound (Nagel et al. 2020) and CBQ (2312.07950). h is the rectified sigmoid of
 * V₀ + V: V is what trains, whole or as a product of two factors; V₀ follows from w and s, so that V = 0 gives w itself
 * wherever its group reaches. Steps train as well, ⌊·⌋ as if it were the identity.
 *
 * Parts: those of the base, `soft_scales`, `soft_zeros`, `soft_input_scales`, and `rounding` or `rounding_a` and
 * `rounding_b`. From forward to backward x is kept and no matrix; each direction makes the matrix again: where the device
 * has kernels for it, one f32 copy while a product runs forward and two back, and one more each for a product of factors
 * and for a base that is packed, bounded or scaled; by the references up to 8 and 15.
 * @param path module path
 * @param base taken over; read at every product, and never written
 * @throws FormatError for parts of another length; ConfigError for options out of range
 */
export function fakeQuant(path: string, base: Weight, parts: FakeQuantParts, options: FakeQuantOptions): FakeQuant {
  const { shape } = base;
  const [out, width] = shape;
  const { bits, grid, bound = Infinity } = options;
  checkAffine({ bits, grid });
  if (!(bound > 0)) throw new ConfigError(`'${path}': bound must be above 0, got ${bound}`, { path, bound });
  const groupSize = affineGroupSize(options.groupSize, width, path);
  const groups = width / groupSize;
  const symmetric = isSymmetric(grid);
  expectLength(`${path}.scales`, parts.scales, out * groups);
  if (!symmetric || parts.zeros !== undefined) expectLength(`${path}.zeros`, parts.zeros, symmetric ? 0 : out * groups);
  if (parts.inputScales !== undefined) expectLength(`${path}.input_scales`, parts.inputScales, width);

  const scales = denseParameter(`${path}.soft_scales`, tensor1d(parts.scales.map((scale) => Math.max(scale, leastScale))), {
    role: 'scale',
    constraint: { floor: leastScale },
  });
  const zeros = parts.zeros && denseParameter(`${path}.soft_zeros`, tensor1d(Float32Array.from(parts.zeros)), { role: 'zero' });
  const factors = parts.inputScales && denseParameter(`${path}.soft_input_scales`, tensor1d(parts.inputScales), { role: 'scale' });
  const rounding = roundingOf(path, shape, parts.rounding);

  /** Rows of the matrix whose codes are chosen; all of a plain one are the tensor that it is stored in. */
  const target = (rows?: Range): Tensor2D => {
    const dense = base.dense(rows);
    const inside = bound < Infinity ? clipByValue(dense, -bound, bound) : dense;
    return factors === undefined ? inside : (div(inside, factors.read()) as Tensor2D);
  };
  const read = (values: (parameter: Parameter) => Tensor): Values => ({
    scales: values(scales),
    rounding: rounding.map(values),
    ...(zeros && { zeros: values(zeros) }),
  });
  const soften = (values: Values, rows?: Range): SoftCodesInputs => {
    const { scales: own, zeros: stored, rounding: made } = rows === undefined ? values : someRows(values, rows, groups);
    const [a, b] = made as [Tensor2D, Tensor2D?];
    return {
      w: target(rows),
      logits: b === undefined ? a : matMul(a, b),
      scales: own,
      zeros: stored ?? fill(own.shape, 2 ** (bits - 1)),
    };
  };
  const stored = (): Values => read((parameter) => parameter.read());
  const reading: Reading = { most: 2 ** bits - 1, soften };

  const weight: FakeQuant = {
    kind: 'fake-quant',
    options: { bits, groupSize, grid, ...(bound < Infinity ? { bound } : {}) },
    shape,
    parts: {
      ...base.parts,
      ...Object.fromEntries(
        [scales, zeros, factors, ...rounding].filter((part) => part !== undefined).map((part) => [part.path.slice(path.length + 1), part]),
      ),
    },
    gradient: 'surrogate',
    steps: scales,
    rounding,
    apply: (x, call) => {
      const values = read((parameter) => call.value(parameter));
      const input = factors === undefined ? x : scaleColumns(x, untracked(factors, call) as Tensor1D);
      const trained = [scales, ...rounding].some((part) => call.tracks(part));
      const y = trained ? fittedProduct(input, values, reading) : frozenProduct(input, values, reading);
      return observe(weight, x, y, call);
    },
    dense: (rows) =>
      tidy(() => {
        const values = softRound(soften(stored(), rows), reading.most) as Tensor2D;
        return factors === undefined ? values : (mul(values, factors.read()) as Tensor2D);
      }),
    roundedUp: () => tidy(() => roundedUp(soften(stored())) as Tensor2D),
    undecided: (call, sharpness) =>
      undecidedMean(
        read((parameter) => call.value(parameter)),
        sharpness,
        reading,
      ),
    settle: async () => {
      const codes = new Uint8Array(out * width);
      const step = Math.max(1, Math.floor(2 ** 19 / width));
      for (let from = 0; from < out; from += step) {
        const some = tidy(() => settledCodes(soften(stored(), [from, Math.min(out, from + step)]), reading.most));
        codes.set(await some.data(), from * width);
        some.dispose();
      }
      const settled = {
        codes: packBits(codes, { bits }),
        scales: ((await scales.read().data()) as Float32Array).slice(),
        ...(parts.zeros && { zeros: parts.zeros }),
        ...(parts.inputScales && { inputScales: parts.inputScales }),
      };
      return affine(path, shape, settled, { bits, groupSize, grid });
    },
  };
  return weight;
}

function roundingOf(path: string, [out, width]: readonly [number, number], given: FakeQuantParts['rounding']): readonly Parameter[] {
  const named = 'dtype' in given ? { rounding: given } : { rounding_a: given.a, rounding_b: given.b };
  const shapes = Object.values(named).map(({ shape }) => shape);
  const [first, second] = shapes;
  const fits =
    second === undefined ? first![0] === out && first![1] === width : first![0] === out && second[1] === width && first![1] === second[0];
  if (!fits) {
    throw new ShapeError(
      `the rounding of '${path}' [${out}, ${width}] takes [out, in], or [out, rank] and [rank, in], got ${shapes.map((shape) => `[${shape}]`).join(' and ')}`,
      {
        path,
        given: shapes,
      },
    );
  }
  return Object.entries(named).map(([name, value]) => denseParameter(`${path}.${name}`, value, { role: 'factor' }));
}

/** What is read of the stored parts: scales and zeros [groups], V as one tensor or two factors. */
interface Values {
  readonly scales: Tensor;
  readonly zeros?: Tensor;
  readonly rounding: readonly Tensor[];
}

interface Reading {
  /** The highest code. */
  readonly most: number;
  /** The matrix, its logits and its grid as the soft ops take them. */
  soften(values: Values): SoftCodesInputs;
}

function someRows({ scales, zeros, rounding }: Values, [from, to]: Range, groups: number): Values {
  const cut = (values: Tensor): Tensor => slice(values, [from * groups], [(to - from) * groups]);
  const [first, ...rest] = rounding as Tensor2D[];
  return {
    scales: cut(scales),
    ...(zeros && { zeros: cut(zeros) }),
    rounding: [slice(first!, [from, 0], [to - from, first!.shape[1]]), ...rest],
  };
}

/** From the gradient of the logits to that of what they are made of. */
function pullRounding(dlogits: Tensor, rounding: readonly Tensor[]): Tensor[] {
  const [a, b] = rounding as [Tensor2D, Tensor2D?];
  const whole = dlogits as Tensor2D;
  return b === undefined ? [whole] : [matMul(whole, b, false, true), matMul(a, whole, true, false)];
}

const listed = ({ scales, zeros, rounding }: Values): Tensor[] => [scales, ...rounding, ...(zeros === undefined ? [] : [zeros])];

function fromList([scales, ...rest]: readonly Tensor[], { zeros, rounding }: Values): Values {
  return { scales: scales!, rounding: rest.slice(0, rounding.length), ...(zeros && { zeros: rest[rounding.length]! }) };
}

const productOf = (x: Tensor2D, values: Values, { soften, most }: Reading): Tensor2D =>
  tidy(() => matMul(x, softRound(soften(values), most) as Tensor2D, false, true));

const inputGradient = (dy: Tensor, given: SoftCodesInputs, most: number): Tensor2D =>
  tidy(() => matMul(dy as Tensor2D, softRound(given, most) as Tensor2D));

/** x·Wᵀ with gradients for x, the steps and the rounding; x is kept, W made again. */
const fittedProduct = (x: Tensor2D, values: Values, reading: Reading): Tensor2D =>
  withGradient(
    [x, values.scales, ...values.rounding],
    (save) => {
      save([x, ...listed(values)]);
      return productOf(x, values, reading);
    },
    (dy, [saved, ...rest]) => {
      const again = fromList(rest, values);
      return tidy(() => {
        const given = reading.soften(again);
        const dx = inputGradient(dy, given, reading.most);
        const { scales, logits } = tidy(() =>
          softRoundGradient(matMul(dy as Tensor2D, saved as Tensor2D, true, false), given, reading.most),
        );
        return [dx, scales, ...pullRounding(logits, again.rounding)];
      });
    },
  ) as Tensor2D;

/** The same for a matrix of which nothing trains: x is not kept either. */
const frozenProduct = (x: Tensor2D, values: Values, reading: Reading): Tensor2D =>
  withGradient(
    [x],
    (save) => {
      save(listed(values));
      return productOf(x, values, reading);
    },
    (dy, saved) => [tidy(() => inputGradient(dy, reading.soften(fromList(saved, values)), reading.most))],
  ) as Tensor2D;

const undecidedMean = (values: Values, sharpness: number, reading: Reading): Scalar =>
  withGradient(
    [...values.rounding],
    (save) => {
      save(listed(values));
      return tidy(() => {
        const { w, logits, scales } = reading.soften(values);
        return div(sum(runOp(undecidedOp, { w, logits, scales }, { sharpness })[0]!), w.size);
      });
    },
    (dy, saved) => {
      const again = fromList(saved, values);
      return tidy(() => {
        const { w, logits, scales } = reading.soften(again);
        const each = fill(scales.shape, 1 / w.size);
        const [dlogits] = runOp(undecidedGradOp, { dy: mul(each, dy), w, logits, scales }, { sharpness });
        return pullRounding(dlogits!, again.rounding);
      });
    },
  ) as Scalar;
