import { ropeOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { rotate } from './rope.wgsl.ts';

export const ropeKernel: Kernel = kernelOf(ropeOp, ({ x, cos, sin }, { inverse }, backend) => {
  const [rows, heads, d] = x.shape as [number, number, number];
  const pairs = (rows * heads * d) / 2;
  const uniforms = { pairs, heads, half: d / 2, sign: inverse ? -1 : 1 };
  const inputs = { x, cosines: cos, sines: sin };
  return [dispatch(backend, rotate, { inputs, outputs: { y: { shape: x.shape } }, uniforms, groups: fold(pairs, lanes) }).y];
});
