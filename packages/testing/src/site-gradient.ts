import type { Adapter, Site } from '@niwaki/nn';
import {
  add,
  createDraw,
  gradientsOf,
  mul,
  noise,
  plainView,
  sum,
  tensor1d,
  tidy,
  type Parameter,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
  type View,
} from '@niwaki/tensor';
import { createCall, type Call } from '@niwaki/weights';

/**
 * Largest relative error of an adapter's gradients at its site against finite differences of Σ G·y, one random direction
 * a trainable parameter and one for the input where that is a matrix. Central differences at two widths with the h² term
 * taken out; what is left is f32 rounding, around 1e-5.
 */
export async function siteGradientError(
  site: Site,
  adapter: Adapter,
  [out, width]: readonly [number, number] = site.weight!.shape,
): Promise<number> {
  const draw = createDraw(5, 0);
  const lookup = site.point === 'embedding';
  const x = lookup ? tensor1d([1, 3, 1, 0], 'int32') : noise([4, width], draw.at('x'), 'gaussian');
  const cotangent = noise([4, lookup ? width : out], draw.at('G'), 'gaussian') as Tensor2D;
  const run = (input: Tensor, call: Call): Tensor2D => adapter.apply(input, (inner) => baseOf(site, inner, call), call, site);
  const valueAt = async (input: Tensor, view: View): Promise<number> => {
    const total = tidy(() => sum(mul(run(input, createCall({ batch: {}, view })), cotangent)));
    const [value] = await total.data();
    total.dispose();
    return value!;
  };

  const parameters = Object.values(adapter.parameters).filter((parameter) => parameter.trainable);
  const watched = new Map(parameters.map((parameter) => [parameter, parameter.read()]));
  const { value: y, gradients } = gradientsOf(
    () => run(x, createCall({ batch: {}, watched })),
    [...watched.values(), ...(lookup ? [] : [x])],
    (of) => [{ of, value: cotangent }],
  );
  y.dispose();

  let worst = 0;
  for (const [i, gradient] of gradients.entries()) {
    const parameter = parameters[i];
    const direction = noise(gradient!.shape, draw.at(`direction ${i}`), 'rademacher');
    const at = async (h: number): Promise<number> => {
      const offset = mul(direction, h);
      const moved = parameter === undefined ? add(x, offset) : x;
      const value = await valueAt(moved, parameter === undefined ? plainView : offsetView(parameter, offset));
      if (moved !== x) moved.dispose();
      offset.dispose();
      return value;
    };
    const slope = async (h: number): Promise<number> => ((await at(h)) - (await at(-h))) / (2 * h);
    const expected = (4 * (await slope(0.05)) - (await slope(0.1))) / 3;
    const [found, size] = await alongDirection(gradient!, direction);
    worst = Math.max(worst, Math.abs(found - expected) / Math.max(size, 1e-3));
    gradient!.dispose();
    direction.dispose();
  }
  x.dispose();
  cotangent.dispose();
  return worst;
}

const offsetView = (parameter: Parameter, value: Tensor): View => ({
  of: (read) => (read === parameter ? { kind: 'offset', value } : { kind: 'plain' }),
  touches: () => true,
});

/** The site without adapters; for a module, which has no weight, half of what it is given. */
export function baseOf(site: Site, x: Tensor, call: Call): Tensor2D {
  if (site.weight === undefined) return mul(x, 0.5) as Tensor2D;
  const y = site.point === 'embedding' ? site.weight!.lookup!(x as Tensor1D, call) : site.weight!.apply(x as Tensor2D, call);
  return site.bias === undefined ? y : add(y, call.value(site.bias));
}

/** The slope along a direction, and the gradient's length to measure its error by: a direction may be nearly level. */
async function alongDirection(gradient: Tensor, direction: Tensor): Promise<[slope: number, length: number]> {
  const [g, d] = [await gradient.data(), await direction.data()];
  let [slope, squares] = [0, 0];
  for (let i = 0; i < g.length; i++) {
    slope += g[i]! * d[i]!;
    squares += g[i]! ** 2;
  }
  return [slope, Math.sqrt(squares)];
}
