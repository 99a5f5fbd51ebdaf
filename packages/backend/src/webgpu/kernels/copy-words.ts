import type { TensorInfo } from '@tensorflow/tfjs-core';
import { cutWordsOp, joinWordsOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, sizeOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { copyWords } from './copy-words.wgsl.ts';

export const joinWordsKernel: Kernel = kernelOf(joinWordsOp, (inputs, { parts }, backend) => {
  const words = Array.from({ length: parts }, (_, i) => inputs[`words${i}`]!);
  const total = words.reduce((sum, each) => sum + sizeOf(each), 0);
  let y: TensorInfo | undefined;
  let to = 0;
  for (const each of words) {
    const count = sizeOf(each);
    y = dispatch(backend, copyWords, {
      inputs: { words: each },
      outputs: { y: y ?? { shape: [total], dtype: 'int32' } },
      uniforms: { begin: 0, to, count },
      groups: fold(count, lanes),
    }).y;
    to += count;
  }
  return [y!];
});

export const cutWordsKernel: Kernel = kernelOf(cutWordsOp, ({ words }, { from, count }, backend) => [
  dispatch(backend, copyWords, {
    inputs: { words },
    outputs: { y: { shape: [count], dtype: 'int32' } },
    uniforms: { begin: from, to: 0, count },
    groups: fold(count, lanes),
  }).y,
]);
