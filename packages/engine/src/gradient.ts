import {
  add,
  addN,
  addNoise,
  concat,
  ConfigError,
  dispose,
  keep,
  reshape,
  scalar,
  scatterND,
  ShapeError,
  square,
  StateError,
  sumSquares,
  tidy,
  zeros,
  type Gradient,
  type Parameter,
  type Scalar,
  type Tensor,
  type Tensor1D,
} from '@niwaki/tensor';

/** Every tensor of a gradient. */
export function tensorsOf(gradient: Gradient): Tensor[] {
  if (gradient.kind === 'dense') return [gradient.value];
  if (gradient.kind === 'rows') return [gradient.index, gradient.value];
  return gradient.terms.map(({ coefficient }) => coefficient);
}

export const gradientBytes = (gradient: Gradient): number => tensorsOf(gradient).reduce((bytes, { size }) => bytes + size * 4, 0);

/** The sum of two gradients of one parameter; takes both over. */
function sumOf(a: Gradient, b: Gradient, parameter: Parameter): Gradient {
  if (a.kind === 'noise' && b.kind === 'noise') return { kind: 'noise', terms: [...a.terms, ...b.terms] };
  const total = tidy((): Gradient & { kind: 'dense' | 'rows' } => {
    if (a.kind === 'rows' && b.kind === 'rows') {
      return { kind: 'rows', index: concat([a.index, b.index]) as Tensor1D, value: concat([a.value, b.value]) };
    }
    return { kind: 'dense', value: add(dense(a, parameter), dense(b, parameter)) };
  });
  dispose([...tensorsOf(a), ...tensorsOf(b)]);
  return total;
}

/** A gradient as one f32 tensor of the parameter's shape: rows are scattered, noise is drawn again. Its own tensor where it is dense already. */
export function dense(gradient: Gradient, { path, shape }: Parameter): Tensor {
  switch (gradient.kind) {
    case 'dense':
      return gradient.value;
    case 'rows':
      return scatterND(reshape(gradient.index, [gradient.index.size, 1]), gradient.value, [...shape]);
    case 'noise': {
      if (gradient.terms.some(({ mask }) => mask !== undefined))
        throw new ConfigError(`masked noise on '${path}' cannot be written out as a gradient`, { path });
      return tidy(() =>
        gradient.terms.reduce<Tensor>((sum, term) => addNoise(sum, term.noise, 'gaussian', term.coefficient), zeros([...shape])),
      );
    }
  }
}

/** Σ g² over the gradients of a step, on the device; the squares of noise coefficients where it was never written out. */
export function squaredNorm(gradients: Iterable<readonly [Parameter, Gradient]>): Scalar {
  return tidy(() => {
    const whole: Tensor[] = [];
    const parts: Tensor[] = [];
    for (const [parameter, gradient] of gradients) {
      if (gradient.kind === 'dense') whole.push(gradient.value);
      else if (gradient.kind === 'noise') parts.push(...gradient.terms.map(({ coefficient }) => square(coefficient)));
      // A tidy each: written out, they would be as large as their parameters.
      else parts.push(tidy(() => sumSquares([dense(gradient, parameter)])));
    }
    if (whole.length > 0) parts.push(sumSquares(whole));
    return parts.length === 0 ? scalar(0) : (total(parts) as Scalar);
  });
}

/** A WebGPU kernel binds at least this many inputs and its output. */
const mostInputs = 7;

/** The sum of tensors of one shape, however many: a device's `addN` takes only as many as it can bind. */
export function total(tensors: readonly Tensor[]): Tensor {
  let level = [...tensors];
  while (level.length > 1) {
    level = Array.from({ length: Math.ceil(level.length / mostInputs) }, (_, i) => addN(level.slice(i * mostInputs, (i + 1) * mostInputs)));
  }
  return level[0]!;
}

/** @throws ShapeError where a gradient is not of its parameter's shape, which an update would broadcast; it is disposed */
function checkShape({ path, shape }: Parameter, gradient: Gradient): void {
  if (gradient.kind === 'noise') return;
  const { value } = gradient;
  const expected = gradient.kind === 'dense' ? shape : [gradient.index.size, ...shape.slice(1)];
  if (value.shape.join() === expected.join()) return;
  dispose(tensorsOf(gradient));
  throw new ShapeError(`the gradient of '${path}' must be [${expected}], got [${value.shape}]`, {
    path,
    expected,
    given: value.shape,
    help: 'An estimator gives every parameter a gradient of its own shape.',
  });
}

/** The gradients of a step so far, summed over micro-batches, and a count of their bytes against what was planned. */
export interface GradientStore {
  /** Takes the gradient's tensors over. @throws ShapeError for one of another shape than the parameter's */
  add(parameter: Parameter, gradient: Gradient): void;
  entries(): readonly (readonly [Parameter, Gradient])[];
  /** Takes a gradient out; the caller disposes it. */
  take(parameter: Parameter): Gradient | undefined;
  readonly bytes: number;
  /** Highest `bytes` since the store was made. */
  readonly peakBytes: number;
  dispose(): void;
}

/** @param options `limit`: bytes the plan allows; more is an error of ours */
export function createGradientStore({ limit }: { limit: number }): GradientStore {
  const held = new Map<Parameter, Gradient>();
  let bytes = 0;
  let peakBytes = 0;
  return {
    add: (parameter, gradient) => {
      checkShape(parameter, gradient);
      bytes += gradientBytes(gradient);
      peakBytes = Math.max(peakBytes, bytes);
      const before = held.get(parameter);
      const beforeBytes = before === undefined ? 0 : gradientBytes(before) + gradientBytes(gradient);
      const total = before === undefined ? gradient : sumOf(before, gradient, parameter);
      tensorsOf(total).forEach(keep);
      if (before !== undefined) bytes += gradientBytes(total) - beforeBytes;
      held.set(parameter, total);
      if (peakBytes > limit) {
        throw new StateError(`internal: ${peakBytes} bytes of gradients are held, the plan allows ${limit}`, {
          path: parameter.path,
          bytes: peakBytes,
          limit,
        });
      }
    },
    entries: () => [...held],
    take: (parameter) => {
      const gradient = held.get(parameter);
      held.delete(parameter);
      if (gradient !== undefined) bytes -= gradientBytes(gradient);
      return gradient;
    },
    get bytes() {
      return bytes;
    },
    get peakBytes() {
      return peakBytes;
    },
    dispose: () => {
      for (const gradient of held.values()) dispose(tensorsOf(gradient));
      held.clear();
      bytes = 0;
    },
  };
}
