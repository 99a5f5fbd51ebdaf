import { add, ConfigError, mul, noise, sub, tidy, type Draw, type Tensor, type Tensor2D } from '@niwaki/tensor';
import type { Adapter, Point, Site } from '@niwaki/nn';

/** Where an adapter of a sub-layer's output goes: after attention or feed-forward, before the residual sum. */
export const sublayerPoints: readonly Point[] = ['attention', 'ffn'];

/** @throws ConfigError for a place that gives nothing to the residual stream */
export function checkSublayer(kind: string, { path, point }: Site): void {
  if (sublayerPoints.includes(point)) return;
  throw new ConfigError(`${kind} goes to the output of an attention or a feed-forward module, '${path}' is a ${point}`, { path, point });
}

/** y + change(y) for the sub-layer's output y. */
export const inSeries =
  (change: (y: Tensor2D, call: Parameters<Adapter['apply']>[2]) => Tensor): Adapter['apply'] =>
  (x, next, call) => {
    const y = next(x);
    return add(y, change(y, call)) as Tensor2D;
  };

/** @param bound numbers lie in (-bound, bound) */
export const uniformStart = (shape: readonly number[], bound: number, draw: Draw, path: string): Tensor =>
  tidy(() => sub(mul(noise(shape, draw.at(`${path}#init`), 'uniform'), 2 * bound), bound));

/** Width of the bottleneck. @throws ConfigError where the reduction does not divide the width */
export function bottleneckWidth(kind: string, width: number, reduction: number): number {
  if (width % reduction === 0) return width / reduction;
  throw new ConfigError(`${kind}: a reduction of ${reduction} does not divide the width ${width}`, {
    field: 'reduction',
    reduction,
    width,
  });
}
