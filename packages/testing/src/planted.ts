import type { Adapter, Site } from '@niwaki/nn';
import {
  createDraw,
  gradientsOf,
  mean,
  mul,
  noise,
  square,
  sub,
  tensor,
  tidy,
  type Parameter,
  type Scalar,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import { createCall } from '@niwaki/weights';
import { baseOf } from './site-gradient.ts';

/**
 * Trains one adapter to give what another of its class gives, at a linear site, on inputs drawn once: Adam on the mean
 * squared difference. Returns the loss before and after, each over the teacher's own mean squared change.
 */
export async function fitTeacher(
  site: Site,
  teacher: Adapter,
  student: Adapter,
  { steps, width }: { steps: number; width: number },
): Promise<[before: number, after: number]> {
  const x = noise([64, width], createDraw(8, 0).at('x'), 'gaussian') as Tensor2D;
  const run = (adapter: Adapter, watched?: ReadonlyMap<Parameter, Tensor>): Tensor2D => {
    const call = createCall({ batch: {}, ...(watched && { watched }) });
    return adapter.apply(x, (input) => baseOf(site, input, call), call, site);
  };
  const target = tidy(() => run(teacher));
  const change = tidy(() => mean(square(sub(target, baseOf(site, x, createCall({ batch: {} }))))));
  const parameters = Object.values(student.parameters).filter((parameter) => parameter.trainable);
  const moments = parameters.map(({ shape }) => ({ m: new Float64Array(sizeOf(shape)), v: new Float64Array(sizeOf(shape)) }));

  const step = async (t: number): Promise<number> => {
    const watched = new Map(parameters.map((parameter) => [parameter, parameter.read()]));
    const one = tensor(1);
    const { value, gradients } = gradientsOf(
      () => mean(square(sub(run(student, watched), target))) as Scalar,
      [...watched.values()],
      (of) => [{ of, value: one }],
    );
    const [loss] = await value.data();
    // The rate falls to nothing, so that Adam comes to rest.
    const rate = 0.05 * (1 - t / (steps + 1));
    for (const [i, gradient] of gradients.entries()) {
      const { m, v } = moments[i]!;
      const [g, old] = [await gradient!.data(), await parameters[i]!.read().data()];
      const next = Float32Array.from(old, (value, e) => {
        m[e] = 0.9 * m[e]! + 0.1 * g[e]!;
        v[e] = 0.99 * v[e]! + 0.01 * g[e]! ** 2;
        return value - (rate * m[e]!) / (1 - 0.9 ** t) / (Math.sqrt(v[e]! / (1 - 0.99 ** t)) + 1e-8);
      });
      parameters[i]!.write(tensor(next, [...parameters[i]!.shape]));
      gradient!.dispose();
    }
    value.dispose();
    one.dispose();
    return loss!;
  };
  const [scale] = await change.data();
  const first = (await step(1)) / scale!;
  for (let t = 2; t <= steps; t++) await step(t);
  const left = tidy(() => mul(mean(square(sub(run(student), target))), 1 / scale!));
  const [last] = await left.data();
  for (const used of [x, target, change, left]) used.dispose();
  return [first, last!];
}

const sizeOf = (shape: readonly number[]): number => shape.reduce((product, side) => product * side, 1);
