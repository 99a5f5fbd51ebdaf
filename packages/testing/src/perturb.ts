import type { AdapterSet } from '@niwaki/nn';
import { add, createDraw, mul, noise, tidy, type Parameter } from '@niwaki/tensor';

export const trainableOf = (parameters: Readonly<Record<string, Parameter>>): Parameter[] =>
  Object.values(parameters).filter((parameter) => parameter.trainable);

/** Values that show, around what the method started with. */
export function perturb(set: AdapterSet, seed: number): void {
  const draw = createDraw(seed, 1);
  const parameters = [...set.sites.values()].flatMap((adapter) => trainableOf(adapter.parameters));
  // Sites may share one.
  for (const parameter of new Set(parameters)) {
    const address = draw.at(`${parameter.path}#perturb`);
    parameter.write(tidy(() => add(parameter.read(), mul(noise(parameter.shape, address, 'gaussian'), 0.2))));
  }
}
