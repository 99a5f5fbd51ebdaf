import { conflictsOf, denseParameter, refuse, StateError, type Tensor2D } from '@niwaki/tensor';
import type { Method } from '@niwaki/engine';
import { denseWeight, type Weight } from '@niwaki/weights';
import type { Site } from '@niwaki/nn';

/** The matrix to quantize changes as the start is sought. @throws ConfigError for what does not quantize a single matrix */
export function checkQuantizer(what: string, { kind, traits }: Method): void {
  const start = { name: what, traits: { needs: ['alone'], help: { alone: 'Use nf4(), fp4() or rtn().' } } } as const;
  refuse(conflictsOf(start, { name: `'${kind}'`, traits }, 'method'), { quantizer: kind });
}

/** A matrix [out, in] as the quantizer stores the site's: a new weight. The matrix stays the caller's. */
export async function quantizedBy(quantizer: Method, site: Site, matrix: Tensor2D): Promise<Weight> {
  const stand: Site = { ...site, weight: denseWeight(denseParameter(`${site.path}.weight`, matrix, { role: 'matrix' })) };
  const { weight } = await quantizer.make(stand, {});
  if (weight === undefined) throw new StateError(`internal: ${quantizer.kind} made no weight for '${site.path}'`, { path: site.path });
  return weight;
}
