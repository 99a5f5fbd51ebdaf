import type { TensorInfo } from '@tensorflow/tfjs-core';
import { integerMatMulOp } from '@niwaki/tensor';
import { abilitiesOf } from '../abilities.ts';
import { dispatch } from '../dispatch.ts';
import { kernelOf, type Kernel } from '../kernel.ts';
import { fold } from '../program.ts';
import { integerColumns, integerProduct, integerThreads } from './integer-matmul.wgsl.ts';
import { decoderOf } from './packed-decode.wgsl.ts';

/** In one launch: x is rounded where it is multiplied, which takes less than the launch that would do it once for all. */
export const integerMatMulKernel: Kernel = kernelOf(integerMatMulOp, ({ x, ...parts }, { activations, ...shape }, backend) => {
  const rows = x.shape[0]!;
  const decoder = decoderOf(shape);
  const variant = { decoder, activations, rows, threads: integerThreads(shape.in), ...abilitiesOf(backend) };
  const stored = Object.keys(decoder.inputs).map((name) => [name, (parts as Record<string, TensorInfo>)[name]!] as const);
  const { y } = dispatch(backend, integerProduct(variant), {
    inputs: { x, ...Object.fromEntries(stored) },
    outputs: { y: { shape: [rows, shape.out] } },
    uniforms: { columns: shape.out, terms: shape.in },
    groups: fold(shape.out, integerColumns),
  });
  return [y];
});
