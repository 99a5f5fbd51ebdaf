import {
  add,
  allFinite,
  conflictsOf,
  denseParameter,
  floatToBfloat,
  floatToHalf,
  halfToFloat,
  bfloatToFloat,
  NumericError,
  refuse,
  StateError,
  tensor2d,
  tidy,
  type Parameter,
  type Party,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import { denseWeight, type Weight } from '@niwaki/weights';
import { siteParty, type Adapter, type AdapterSet, type Site } from '@niwaki/nn';

export interface Before {
  readonly weight: Weight;
  readonly bias: Parameter | undefined;
}

export interface MergedValues {
  /** f32 [out, in] */
  readonly matrix: Tensor2D;
  /** Present where it changes. */
  readonly bias?: Tensor | undefined;
}

/**
 * The site's matrix and bias with these sets merged, in f32: product, scale and sum, and no cast. Replaced values come
 * first, then the adapters in order, the first nearest to the base, as the forward pass nests them.
 * @throws ConfigError where a merged bias has no place to go; NumericError for a result that is not finite
 */
export async function mergedSite(site: Site, before: Before, sets: readonly AdapterSet[]): Promise<MergedValues> {
  const scratch: Tensor[] = [];
  const { path } = site;
  try {
    let weight = before.weight;
    let bias = before.bias;
    let matrix: Tensor2D | undefined;
    let newBias: Tensor | undefined;
    const take = (next: { readonly matrix?: Tensor2D; readonly bias?: Tensor }): void => {
      if (next.matrix !== undefined) {
        scratch.push(next.matrix);
        matrix = next.matrix;
        weight = denseWeight(denseParameter(`${path}.weight`, next.matrix, { role: 'matrix' }));
      }
      if (next.bias !== undefined) {
        scratch.push(next.bias);
        newBias = next.bias;
        bias = denseParameter(`${path}.bias`, next.bias, { role: 'bias' });
      }
    };
    const replaced = (ending: string): Tensor | undefined =>
      lastOf(sets.map((set) => set.replaced.get(`${path}.${ending}`)))
        ?.read()
        .clone();
    const [wholeMatrix, wholeBias] = [replaced('weight') as Tensor2D | undefined, replaced('bias')];
    take({ ...(wholeMatrix && { matrix: wholeMatrix }), ...(wholeBias && { bias: wholeBias }) });
    for (const set of sets) {
      const adapter = set.sites.get(path);
      if (adapter !== undefined) take(await mergeOne(adapter, { weight, bias, base: before.weight, path, name: set.name }));
    }
    const result: MergedValues = { matrix: matrix ?? keepDense(before.weight, scratch), bias: newBias };
    if (result.bias !== undefined) refuse(conflictsOf(mergingBias, siteParty({ ...site, ...before }), 'site'), { path });
    await refuseNonFinite(result.matrix, `${path}.weight`);
    if (result.bias !== undefined) await refuseNonFinite(result.bias, `${path}.bias`);
    for (const tensor of scratch) if (tensor !== result.matrix && tensor !== result.bias) tensor.dispose();
    return result;
  } catch (error) {
    for (const tensor of scratch) tensor.dispose();
    throw error;
  }
}

/** An adapter with a bias of its own. */
const mergingBias: Party = { name: 'merging a bias', traits: { needs: ['bias'] } };

const lastOf = <T>(list: readonly (T | undefined)[]): T | undefined => list.reduce((found, value) => value ?? found, undefined);

function keepDense(weight: Weight, scratch: Tensor[]): Tensor2D {
  const dense = weight.dense();
  scratch.push(dense);
  return dense;
}

interface Onto extends Before {
  readonly base: Weight;
  readonly path: string;
  /** Of the set, for the error. */
  readonly name: string;
}

async function mergeOne(adapter: Adapter, { weight, bias, base, path, name }: Onto): Promise<{ matrix: Tensor2D; bias?: Tensor }> {
  if (adapter.merge !== undefined) return adapter.merge(weight, bias, base);
  const delta = adapter.delta?.();
  if (delta !== undefined) return { matrix: tidy(() => add(weight.dense(), delta.dense()) as Tensor2D) };
  throw new StateError(`internal: adapter '${name}' (${adapter.kind}) at '${path}' was to be merged`, { path, name, kind: adapter.kind });
}

/** @throws NumericError; `name` is the parameter's */
export async function refuseNonFinite(value: Tensor, name: string): Promise<void> {
  const flag = allFinite(value);
  const [finite] = await flag.data();
  flag.dispose();
  if (finite === 1) return;
  throw new NumericError(`merging gives '${name}' values that are not finite; nothing was merged`, {
    path: name,
    help: 'The adapter holds NaN or infinity, or its scale is too large.',
  });
}

/** One cast at the end: f32 values rounded to what a file of that type can hold, ties to even. 'f32': the tensor itself. */
export async function roundedTo(matrix: Tensor2D, dtype: 'f32' | 'f16' | 'bf16'): Promise<Tensor2D> {
  if (dtype === 'f32') return matrix;
  const values = (await matrix.data()) as Float32Array;
  const round =
    dtype === 'f16' ? (value: number) => halfToFloat(floatToHalf(value)) : (value: number) => bfloatToFloat(floatToBfloat(value));
  return tensor2d(Float32Array.from(values, round), matrix.shape);
}
