import { add, residualNorm, rmsNorm, type Parameter, type Tensor1D, type Tensor2D } from '@niwaki/tensor';
import type { Call } from '@niwaki/weights';
import type { Point, Site } from '../graph.ts';
import { isBare, readOwn, runModule, type Attached } from '../run-site.ts';
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

/** What a branch of the residual stream reads, and the stream that its result is added to. */
export interface Branch {
  readonly stream: Tensor2D;
  readonly normed: Tensor2D;
}

export type Branching = (x: Tensor2D, delta: Tensor2D | undefined, call: Call) => Branch;

/**
 * The family's norm of the stream, with what the branch before adds to it. One node where nothing is around the norm.
 */
export const branchOf = ({ eps }: DecoderConfig, weight: Parameter, attached: Attached): Branching => {
  const site = normSite(weight);
  return (x, delta, call) => {
    const { value, tracked } = readOwn(weight, call, attached);
    const options = { eps, weightGradient: tracked };
    if (isBare(site, call, attached)) return residualNorm(x, delta, value as Tensor1D, options);
    const stream: Tensor2D = delta === undefined ? x : add(x, delta);
    return { stream, normed: runModule(site, stream, (input) => rmsNorm(input, value as Tensor1D, options), call, attached) };
  };
};
