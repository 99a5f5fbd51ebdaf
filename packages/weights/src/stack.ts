import {
  concat,
  ConfigError,
  cutWords,
  denseParameter,
  groupedMatMul,
  joinWords,
  packedGroupedMatMul,
  reshape,
  ShapeError,
  slice,
  tidy,
  type Parameter,
  type Tensor3D,
} from '@niwaki/tensor';
import { denseWeight } from './dense.ts';
import { packedForm, packedReads, readParts, type PackedForm, type PackedParameters } from './packed.ts';
import { disposeWeight, type Weight, type WeightStack } from './weight.ts';

/**
 * Matrices of one shape and format as one stack, e.g. the experts of a layer: a product gives each its own run of rows, in
 * one launch, and reads those alone that have rows. Dense matrices train as one parameter [count, out, in], whose matrices
 * without rows get zeros for a gradient; packed ones (4-bit codebooks, affine codes, GGUF blocks) are frozen, and decoded as
 * they are multiplied, with rows as they are whatever `activations` says. Nobody can ask for the gradient of a frozen stack.
 *
 * Parts: those of one matrix under their names, each with all matrices after one another. Bytes are the sum of theirs.
 * @param path of the stack: the parts are named `path.weight`, `path.weight.absmax`, …
 * @param weights by number; taken over, and disposed once the stack has their bytes: until then both are there
 * @throws ConfigError for no weights, several formats, or a format that has no products of stacks (sparse, trained codes,
 * columns in another order or with scales of their own); ShapeError for weights of different shapes
 * @example weightStack('model.layers.0.mlp.experts.up_proj', experts).applyGrouped(dispatchTokens(x, order), order.runs, call)
 */
export function weightStack(path: string, weights: readonly Weight[]): WeightStack {
  const [first, ...others] = weights;
  if (first === undefined) throw new ConfigError(`'${path}': a stack takes at least one weight`, { path });
  for (const [i, other] of others.entries()) expectAlike(path, first, other, i + 1);
  const stack = first.kind === 'dense' ? denseStack(path, first, weights) : packedStack(path, first, weights);
  for (const weight of weights) disposeWeight(weight);
  return stack;
}

function denseStack(path: string, { kind, options, shape }: Weight, weights: readonly Weight[]): WeightStack {
  const count = weights.length;
  const part = stackPart(
    `${path}.weight`,
    weights.map(({ matrix }) => matrix!),
  );
  const { parameter } = part;
  return {
    kind: 'stack',
    options: { count, of: { kind, options } },
    count,
    shape,
    parts: { weight: parameter },
    matrix: parameter,
    at: (i, target = `${path}.${i}`) => {
      expectNumber(path, i, count);
      return denseWeight(part.at(i, `${target}.weight`));
    },
    applyGrouped: (x, runs, call) =>
      groupedMatMul(x, call.value(parameter) as Tensor3D, runs, { frozen: !call.tracks(parameter), unread: call.unread }),
  };
}

function packedStack(path: string, first: Weight, weights: readonly Weight[]): WeightStack {
  const { kind, options, shape, encode } = first;
  const count = weights.length;
  const packed = formOf(path, first);
  const forms = weights.map((weight) => formOf(path, weight));
  // The ops and the files name parts differently.
  const fileNames = new Map(Object.entries(first.parts).map(([name, part]) => [part, name]));
  const names = Object.keys(packed.parameters) as (keyof PackedParameters)[];
  const parts = names.map((name) => {
    const fileName = fileNames.get(packed.parameters[name]!)!;
    const each = forms.map(({ parameters }) => parameters[name]!);
    return { name, fileName, ...stackPart(`${path}.${fileName}`, each) };
  });
  const parameters: PackedParameters = Object.fromEntries(parts.map(({ name, parameter }) => [name, parameter]));
  return {
    kind: 'stack',
    options: { count, of: { kind, options } },
    count,
    shape,
    parts: Object.fromEntries(parts.map(({ fileName, parameter }) => [fileName, parameter])),
    at: (i, target = `${path}.${i}`) => {
      expectNumber(path, i, count);
      const own = parts.map(({ name, fileName, at }) => ({ name, fileName, parameter: at(i, `${target}.${fileName}`) }));
      return {
        kind,
        options,
        shape,
        parts: Object.fromEntries(own.map(({ fileName, parameter }) => [fileName, parameter])),
        ...packedReads(packed.shape, Object.fromEntries(own.map(({ name, parameter }) => [name, parameter]))),
        ...(encode && { encode }),
      };
    },
    applyGrouped: (x, runs, call) => packedGroupedMatMul(x, readParts(parameters, call), packed.shape, runs, call),
  };
}

interface StackedPart {
  readonly parameter: Parameter;
  /** A copy of what matrix i has of it. */
  at(i: number, path: string): Parameter;
}

/** Values of one part of all matrices, after one another; words of packed bytes begin with each matrix anew. */
function stackPart(path: string, parts: readonly Parameter[]): StackedPart {
  const { role, shape, file } = parts[0]!;
  const count = parts.length;
  const values = parts.map((part) => part.read());
  const { size } = values[0]!;
  const value =
    file === undefined ? tidy(() => reshape(concat(values.map((each) => reshape(each, [size]))), [count, ...shape])) : joinWords(values);
  const parameter = denseParameter(path, value, {
    role,
    shape: [count, ...shape],
    trainable: parts.every(({ trainable }) => trainable),
    ...(file && { file: { dtype: 'U8', shape: [count, 4 * size], bytes: 4 * size * count } }),
  });
  return {
    parameter,
    at: (i, target) => {
      const whole = parameter.read();
      const own =
        file === undefined
          ? tidy(() => reshape(slice(reshape(whole, [count * size]), [i * size], [size]), [...shape]))
          : cutWords(whole, i * size, size);
      return denseParameter(target, own, { role, shape, ...(file && { file }) });
    },
  };
}

function formOf(path: string, weight: Weight): PackedForm {
  const form = packedForm(weight);
  if (form !== undefined) return form;
  throw new ConfigError(`'${path}': a weight of kind '${weight.kind}' has no products of stacks as it is stored`, {
    path,
    kind: weight.kind,
    options: weight.options,
    help: 'Stack dense matrices, 4-bit codebooks, GGUF blocks, or affine codes without an order or input scales.',
  });
}

function expectAlike(path: string, first: Weight, other: Weight, i: number): void {
  if (other.shape.join() !== first.shape.join()) {
    throw new ShapeError(`'${path}': weight ${i} of the stack is [${other.shape}], the first is [${first.shape}]`, {
      path,
      expected: first.shape,
      given: other.shape,
    });
  }
  const [wanted, given] = [first, other].map(({ kind, options }) => `${kind} ${JSON.stringify(options)}`);
  if (given === wanted) return;
  throw new ConfigError(`'${path}': weight ${i} of the stack is ${given}, the first is ${wanted}`, {
    path,
    help: 'Bring all of them into one format first.',
  });
}

function expectNumber(path: string, i: number, count: number): void {
  if (Number.isInteger(i) && i >= 0 && i < count) return;
  throw new ConfigError(`'${path}' is a stack of ${count} matrices, it has no number ${i}`, { path, count, given: i });
}
