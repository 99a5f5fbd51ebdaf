import { rmsNorm, type Parameter, type Tensor1D, type Tensor2D } from '@niwaki/tensor';
import type { Call } from '@niwaki/weights';
import type { Point, Site } from '../graph.ts';
import { readOwn, type Attached } from '../run-site.ts';
import type { DecoderConfig } from './config.ts';
import type { Linear } from './weights.ts';

/** A site of a family, with what it stores now. */
export function siteOf(path: string, point: Point, inputId: string, { weight, bias }: Linear): Site {
  return { path, point, inputId, weight, ...(bias === undefined ? {} : { bias }) };
}

/** A module around sites, for adapters of its output. */
export const moduleOf = (path: string, point: Point): Site => ({ path, point, inputId: path });

/** The site of a norm, by its weight. */
export const normSite = ({ path }: Parameter): Site => moduleOf(path.slice(0, path.lastIndexOf('.')), 'norm');

export type Norm = (x: Tensor2D, weight: Parameter, call: Call) => Tensor2D;

/** The family's norm, reading its weight through call and adapters. */
export const rmsNormOf =
  ({ eps }: DecoderConfig, attached: Attached): Norm =>
  (x, weight, call) => {
    const { value, tracked } = readOwn(weight, call, attached);
    return rmsNorm(x, value as Tensor1D, { eps, weightGradient: tracked });
  };
