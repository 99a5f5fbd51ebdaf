import { countingSortOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, release, sizeOf, type Kernel } from '../kernel.ts';
import { fold } from '../program.ts';
import { chunkKeys, countKeys, placeKeys, scanKeys } from './counting-sort.wgsl.ts';

/** Where the reference reads the keys back. No atomics: the same places each time. */
export const countingSortKernel: Kernel = kernelOf(countingSortOp, ({ keys }, { count }, backend) => {
  const number = sizeOf(keys);
  if (number === 0) return [0, 0, count + 1].map((size) => backend.makeTensorInfo([size], 'int32', new Int32Array(size)));
  const chunks = Math.ceil(number / chunkKeys);
  const uniforms = { keys: number, count, chunks };
  const { counts } = dispatch(backend, countKeys, {
    inputs: { keys },
    outputs: { counts: { shape: [chunks, count + 1], dtype: 'int32' } },
    uniforms,
    groups: fold(chunks),
  });
  const { runs } = dispatch(backend, scanKeys, {
    inputs: {},
    outputs: { counts, runs: { shape: [count + 1], dtype: 'int32' } },
    uniforms,
    groups: [1],
  });
  const { order, places } = dispatch(backend, placeKeys, {
    inputs: { keys, counts, runs },
    outputs: { order: { shape: [number], dtype: 'int32' }, places: { shape: [number], dtype: 'int32' } },
    uniforms,
    groups: fold(chunks),
  });
  release(backend, counts);
  return [order, places, runs];
});
