import {
  abs,
  add,
  cast,
  clipByValue,
  ConfigError,
  denseParameter,
  div,
  exp,
  floor,
  greater,
  greaterEqual,
  less,
  lessEqual,
  logicalAnd,
  matMul,
  mean,
  mul,
  neg,
  packBits,
  pow,
  reshape,
  ShapeError,
  sign,
  slice,
  sub,
  sum,
  tensor1d,
  tidy,
  withGradient,
  type Parameter,
  type Range,
  type Scalar,
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

/** Ends of the rectified sigmoid (Louizos et al. 2018): both 0 and 1 are reached. */
const [high, low] = [1.1, -0.1];
/** A fraction within this of 0 or 1 starts from here: at 0 and 1 themselves no gradient would move it. */
const margin = 1e-4;
const leastScale = 1e-8;

/**
 * Codes of 2, 3, 4 or 8 bits that are not decided yet, over a float matrix: value = s · (clamp(⌊w/s⌋ + h + zero) - zero),
 * with h in [0, 1] for each entry, after AdaRound (Nagel et al. 2020) and CBQ (2312.07950). h is the rectified sigmoid of
 * V₀ + V: V is what trains, whole or as a product of two factors; V₀ follows from w and s, so that V = 0 gives w itself
 * wherever its group reaches. Steps train as well, ⌊·⌋ as if it were the identity.
 *
 * Parts: those of the base, `soft_scales`, `soft_zeros`, `soft_input_scales`, and `rounding` or `rounding_a` and
 * `rounding_b`. From forward to backward x is kept and no matrix; each direction makes the matrix again: 8 f32 copies of
 * it at most while a product runs forward, 15 back.
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
  const grain: Grain = { groupSize, middle: 2 ** (bits - 1) };

  /** Rows of the matrix whose codes are chosen, groups as rows. */
  const target = (rows: Range): Tensor2D => {
    const dense = base.dense(rows);
    const inside = bound < Infinity ? clipByValue(dense, -bound, bound) : dense;
    return asGroups(factors === undefined ? inside : div(inside, factors.read()), groupSize);
  };
  const all: Range = [0, out];
  const read = (values: (parameter: Parameter) => Tensor): Values => ({
    scales: values(scales),
    rounding: rounding.map(values),
    ...(zeros && { zeros: values(zeros) }),
  });
  const soften = (values: Values, rows: Range = all): Soft =>
    soft(target(rows), rows === all ? values : someRows(values, rows, groups), grain);
  const stored = (): Values => read((parameter) => parameter.read());
  const asMatrix = (groupsAsRows: Tensor): Tensor2D => reshape(groupsAsRows, [-1, width]) as Tensor2D;
  const reading: Reading = { most: 2 ** bits - 1, soften, asMatrix };

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
    dense: (rows = all) =>
      tidy(() => {
        const values = asMatrix(softValue(soften(stored(), rows), reading.most).value);
        return factors === undefined ? values : (mul(values, factors.read()) as Tensor2D);
      }),
    roundedUp: () => tidy(() => asMatrix(soften(stored()).up)),
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
        const some = tidy(() => codesOf(soften(stored(), [from, Math.min(out, from + step)]), reading.most));
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

interface Grain {
  readonly groupSize: number;
  /** The code that stands for 0 where no zeros are stored. */
  readonly middle: number;
}

/** What is read of the stored parts: scales and zeros [groups], V as one tensor or two factors. */
interface Values {
  readonly scales: Tensor;
  readonly zeros?: Tensor;
  readonly rounding: readonly Tensor[];
}

/** Where entries lie between two codes, groups as rows: [groups, groupSize] each. */
interface Soft {
  readonly scale: Tensor;
  readonly zero: Tensor | number;
  /** w / s */
  readonly place: Tensor;
  /** The code below. */
  readonly below: Tensor;
  /** The sigmoid before it is stretched. */
  readonly gate: Tensor;
  /** h */
  readonly up: Tensor;
}

interface Reading {
  /** The highest code. */
  readonly most: number;
  soften(values: Values): Soft;
  asMatrix(groups: Tensor): Tensor2D;
}

const asGroups = (matrix: Tensor, groupSize: number): Tensor2D => reshape(matrix, [-1, groupSize]) as Tensor2D;

/** A tidy for each step: of about twenty tensors as large as the matrix, only those still needed are alive together. */
const soft = (w: Tensor2D, { scales, zeros, rounding }: Values, { groupSize, middle }: Grain): Soft =>
  tidy(() => {
    const scale = reshape(scales, [-1, 1]);
    const zero = zeros === undefined ? middle : reshape(zeros, [-1, 1]);
    const place = div(w, scale);
    const fraction = tidy(() => clipByValue(sub(place, floor(place)), margin, 1 - margin));
    const gate = tidy(() => {
      const [a, b] = rounding as [Tensor2D, Tensor2D?];
      const v = asGroups(b === undefined ? a : matMul(a, b), groupSize);
      // σ(V₀ + V) for V₀ = -ln((high - low) / (fraction - low) - 1), without its logarithm.
      const start = sub(fraction, low);
      const rest = tidy(() => mul(sub(high, fraction), exp(neg(v))));
      return div(start, add(start, rest));
    });
    const up = tidy(() => clipByValue(add(mul(gate, high - low), low), 0, 1));
    return { scale, zero, place, below: tidy(() => add(floor(place), zero)), gate, up };
  });

/** ⌊w/s⌋ + h + zero, what is left of it less the zero where it is cut to the codes there are, and the value of that. */
function softValue(
  { scale, zero, below, up }: Soft,
  most: number,
): { readonly level: Tensor; readonly offset: Tensor; readonly value: Tensor } {
  const level = add(below, up);
  const offset = tidy(() => sub(clipByValue(level, 0, most), zero));
  return { level, offset, value: mul(scale, offset) };
}

/** Whole codes: h of half or more goes up. */
const codesOf = ({ below, up }: Soft, most: number): Tensor => clipByValue(add(below, cast(greaterEqual(up, 0.5), 'float32')), 0, most);

const matrixOf = (values: Values, { soften, asMatrix, most }: Reading): Tensor2D =>
  tidy(() => asMatrix(softValue(soften(values), most).value));

function someRows({ scales, zeros, rounding }: Values, [from, to]: Range, groups: number): Values {
  const cut = (values: Tensor): Tensor => slice(values, [from * groups], [(to - from) * groups]);
  const [first, ...rest] = rounding as Tensor2D[];
  return {
    scales: cut(scales),
    ...(zeros && { zeros: cut(zeros) }),
    rounding: [slice(first!, [from, 0], [to - from, first!.shape[1]]), ...rest],
  };
}

/** What moves V: the slope of h, 0 where it is decided for good. */
const slope = ({ gate, up }: Soft): Tensor =>
  tidy(() => {
    const steep = tidy(() => mul(mul(gate, sub(1, gate)), high - low));
    return mul(steep, cast(logicalAnd(greater(up, 0), less(up, 1)), 'float32'));
  });

/** From the gradient of V, groups as rows, to that of what it is made of. */
function pullRounding(dv: Tensor, rounding: readonly Tensor[], { asMatrix }: Reading): Tensor[] {
  const whole = asMatrix(dv);
  const [a, b] = rounding as [Tensor2D, Tensor2D?];
  return b === undefined ? [whole] : [matMul(whole, b, false, true), matMul(a, whole, true, false)];
}

const listed = ({ scales, zeros, rounding }: Values): Tensor[] => [scales, ...rounding, ...(zeros === undefined ? [] : [zeros])];

function fromList([scales, ...rest]: readonly Tensor[], { zeros, rounding }: Values): Values {
  return { scales: scales!, rounding: rest.slice(0, rounding.length), ...(zeros && { zeros: rest[rounding.length]! }) };
}

/** x·Wᵀ with gradients for x, the steps and the rounding; x is kept, W made again. */
const fittedProduct = (x: Tensor2D, values: Values, reading: Reading): Tensor2D =>
  withGradient(
    [x, values.scales, ...values.rounding],
    (save) => {
      save([x, ...listed(values)]);
      return tidy(() => matMul(x, matrixOf(values, reading), false, true));
    },
    (dy, [saved, ...rest]) => {
      const again = fromList(rest, values);
      return tidy(() => {
        const state = reading.soften(again);
        const { scale, place } = state;
        const { level, offset, value } = softValue(state, reading.most);
        const dx = matMul(dy as Tensor2D, reading.asMatrix(value));
        const dw = reshape(matMul(dy as Tensor2D, saved as Tensor2D, true, false), value.shape);
        const inside = tidy(() => cast(logicalAnd(greaterEqual(level, 0), lessEqual(level, reading.most)), 'float32'));
        const dScales = tidy(() => reshape(sum(mul(dw, sub(offset, mul(inside, place))), 1), again.scales.shape));
        const dv = tidy(() =>
          mul(
            tidy(() => mul(mul(dw, scale), inside)),
            slope(state),
          ),
        );
        return [dx, dScales, ...pullRounding(dv, again.rounding, reading)];
      });
    },
  ) as Tensor2D;

/** The same for a matrix of which nothing trains: x is not kept either. */
const frozenProduct = (x: Tensor2D, values: Values, reading: Reading): Tensor2D =>
  withGradient(
    [x],
    (save) => {
      save(listed(values));
      return tidy(() => matMul(x, matrixOf(values, reading), false, true));
    },
    (dy, saved) => [tidy(() => matMul(dy as Tensor2D, matrixOf(fromList(saved, values), reading)))],
  ) as Tensor2D;

const undecidedMean = (values: Values, sharpness: number, reading: Reading): Scalar =>
  withGradient(
    [...values.rounding],
    (save) => {
      save(listed(values));
      return tidy(() => sub(1, mean(pow(abs(centered(reading.soften(values))), sharpness))));
    },
    (dy, saved) => {
      const again = fromList(saved, values);
      return tidy(() => {
        const state = reading.soften(again);
        const steep = tidy(() => {
          const c = centered(state);
          return mul(mul(pow(abs(c), sharpness - 1), sign(c)), (-2 * sharpness) / c.size);
        });
        return pullRounding(mul(mul(steep, slope(state)), dy), again.rounding, reading);
      });
    },
  ) as Scalar;

/** 2h - 1: -1 and 1 where an entry is decided. */
const centered = ({ up }: Soft): Tensor => sub(mul(up, 2), 1);
