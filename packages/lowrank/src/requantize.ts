import { ConfigError, denseParameter, StateError, type Tensor2D } from '@niwaki/tensor';
import type { Method } from '@niwaki/engine';
import { denseWeight, type Weight } from '@niwaki/weights';
import type { Site } from '@niwaki/nn';

/** @throws ConfigError for what is no quantizer of single matrices: adapters, and methods that look at data or at the whole model */
export function checkQuantizer(what: string, quantizer: Method): void {
  const { kind, makes, plan, collect, visit } = quantizer;
  if (makes === 'weight' && plan === undefined && collect === undefined && visit === undefined) return;
  throw new ConfigError(
    makes === 'weight'
      ? `${what}: '${kind}' looks at more than one matrix, and the matrix to quantize changes as the start is sought`
      : `${what}: a quantizer makes weights, '${kind}' makes an ${makes}`,
    { quantizer: kind, help: 'Use nf4(), fp4() or rtn().' },
  );
}

/** A matrix [out, in] as the quantizer stores the site's: a new weight. The matrix stays the caller's. */
export async function quantizedBy(quantizer: Method, site: Site, matrix: Tensor2D): Promise<Weight> {
  const stand: Site = { ...site, weight: denseWeight(denseParameter(`${site.path}.weight`, matrix, { role: 'matrix' })) };
  const { weight } = await quantizer.make(stand, {});
  if (weight === undefined) throw new StateError(`internal: ${quantizer.kind} made no weight for '${site.path}'`, { path: site.path });
  return weight;
}
