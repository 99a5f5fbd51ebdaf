import { ropeOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { rotate } from './rope.wgsl.ts';

export const ropeKernel: Kernel = kernelOf(ropeOp, ({ q, k, cos, sin }, { inverse }, backend) => {
  const [rows, heads, d] = q.shape as [number, number, number];
  const kvHeads = k.shape[1]!;
  const pairs = (rows * (heads + kvHeads) * d) / 2;
  const uniforms = { pairs, heads, kvHeads, half: d / 2, sign: inverse ? -1 : 1 };
  const inputs = { q, k, cosines: cos, sines: sin };
  const outputs = { turnedQ: { shape: q.shape }, turnedK: { shape: k.shape } };
  const { turnedQ, turnedK } = dispatch(backend, rotate, { inputs, outputs, uniforms, groups: fold(pairs, lanes) });
  return [turnedQ, turnedK];
});
