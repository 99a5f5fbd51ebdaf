import { codeSearch, dequantizeBlocksOp, dynamicMap, quantizeBlocksOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, release, sizeOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { decodeBlocks, encodeBlocks } from './block-code.wgsl.ts';

export const quantizeBlocksKernel: Kernel = kernelOf(quantizeBlocksOp, ({ x }, { signed, blockSize, guard }, backend) => {
  const tables = codeSearch({ signed, guard });
  const [base, boundary] = [tables.base, tables.boundary].map((values) => backend.makeTensorInfo([values.length], 'float32', values));
  const count = sizeOf(x);
  const blocks = Math.ceil(count / blockSize);
  const { words, scales } = dispatch(backend, encodeBlocks({ signed }), {
    inputs: { x, base: base!, boundary: boundary! },
    outputs: { words: { shape: [Math.ceil(count / 4)], dtype: 'int32' }, scales: { shape: [blocks] } },
    uniforms: { count, blocks, blockSize },
    groups: fold(blocks),
  });
  release(backend, base!, boundary!);
  return [words, scales];
});

export const dequantizeBlocksKernel: Kernel = kernelOf(
  dequantizeBlocksOp,
  ({ words, scales }, { signed, blockSize, length: count }, backend) => {
    const values = dynamicMap({ signed });
    const map = backend.makeTensorInfo([values.length], 'float32', values);
    const made = dispatch(backend, decodeBlocks, {
      inputs: { words, scales, map },
      outputs: { values: { shape: [count] } },
      uniforms: { count, blockSize },
      groups: fold(count, lanes),
    });
    release(backend, map);
    return [made.values];
  },
);
