import { add, ConfigError, ShapeError, tidy, type Parameter, type Tensor, type Tensor1D, type Tensor2D } from '@niwaki/tensor';
import { observe } from './observe.ts';
import type { Weight } from './weight.ts';

/**
 * The sum of stored weights of one shape: packed codes and a sparse rest of what they lose, or several formats on top of
 * one another. Each is applied as it is stored, so a product costs what theirs cost together, and bytes are the sum too;
 * nothing more is kept for the backward pass, and whatever of them can train does. It has no `encode`: which of them should
 * take a new matrix, nobody can say.
 *
 * Parts: those of each weight, under its number: `0.weight`, `1.columns`.
 * @param path module path, for errors
 * @param weights taken over: dispose the sum alone. Their parts must have paths of their own
 * @throws ConfigError for fewer than two, or two parts of one path; ShapeError for weights of different shapes
 * @example summed('model.layers.0.mlp.up_proj', [packed, csr(`${path}.rest`, shape, rest)])
 */
export function summed(path: string, weights: readonly Weight[]): Weight {
  const [first, ...others] = weights;
  if (first === undefined || others.length === 0)
    throw new ConfigError(`'${path}': a sum takes at least two weights, got ${weights.length}`, { path, given: weights.length });
  const { shape } = first;
  for (const [i, other] of others.entries()) {
    if (other.shape.join() === shape.join()) continue;
    throw new ShapeError(`'${path}': weight ${i + 1} of the sum is [${other.shape}], the first is [${shape}]`, {
      path,
      expected: shape,
      given: other.shape,
    });
  }
  const total = (of: (weight: Weight) => Tensor): Tensor2D =>
    others.reduce<Tensor>((sum, weight) => add(sum, of(weight)), of(first)) as Tensor2D;
  const all = <K extends 'lookup' | 'take'>(name: K): boolean => weights.every((weight) => weight[name] !== undefined);
  const weight: Weight = {
    kind: 'sum',
    options: { weights: weights.map(({ kind, options }) => ({ kind, options })) },
    shape,
    parts: numbered(path, weights),
    apply: (x, call) =>
      observe(
        weight,
        x,
        total((one) => one.apply(x, call)),
        call,
      ),
    dense: (rows) => tidy(() => total((one) => one.dense(rows))),
    ...(all('lookup') && { lookup: (ids: Tensor1D, call) => tidy(() => total((one) => one.lookup!(ids, call))) }),
    ...(all('take') && {
      take: async (rows: Int32Array, target: string) => {
        const taken: Weight[] = [];
        for (const [i, one] of weights.entries()) taken.push(await one.take!(rows, i === 0 ? target : `${target}.${i}`));
        return summed(target, taken);
      },
    }),
    ...(weights.some(({ gradient }) => gradient === 'surrogate') && { gradient: 'surrogate' as const }),
  };
  return weight;
}

function numbered(path: string, weights: readonly Weight[]): Record<string, Parameter> {
  const seen = new Set<string>();
  const parts: Record<string, Parameter> = {};
  for (const [i, { parts: own }] of weights.entries()) {
    for (const [name, part] of Object.entries(own)) {
      if (seen.has(part.path)) {
        throw new ConfigError(`'${path}': two parts of the sum are called '${part.path}'`, {
          path,
          part: part.path,
          help: 'Make each weight of a sum under a path of its own.',
        });
      }
      seen.add(part.path);
      parts[`${i}.${name}`] = part;
    }
  }
  return parts;
}
