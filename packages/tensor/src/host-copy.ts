import type { RawTensor } from './parameter.ts';
import { bytesOf } from './packed/words.ts';
import { tensor, type Tensor } from './tfjs.ts';

/** A tensor as the device holds it, bit for bit, in host memory: f32 numbers, or int32 ones (the words of something packed). */
export async function hostCopy(value: Tensor): Promise<RawTensor> {
  // A device that computes on the host hands out its own memory, which the next step may reuse.
  const values = (await value.data()).slice();
  return { dtype: value.dtype === 'int32' ? 'I32' : 'F32', shape: value.shape, bytes: bytesOf(values) };
}

export const isOnDevice = (value: Tensor | RawTensor): value is Tensor => 'dataId' in value;

/** The tensor of a host copy: a new one, of the same bits. */
export function deviceCopy({ dtype, shape, bytes }: RawTensor): Tensor {
  const { buffer } = bytes.slice();
  return dtype === 'I32' ? tensor(new Int32Array(buffer), [...shape], 'int32') : tensor(new Float32Array(buffer), [...shape], 'float32');
}
