import { FormatError, tensor, type RawTensor, type Tensor } from '@niwaki/tensor';
import { encodeSafetensors, memorySource, openSafetensors } from '@niwaki/hub';

/** A safetensors file of f32 and int32 tensors, bit for bit. */
export async function encodeTensors(tensors: ReadonlyMap<string, Tensor>): Promise<Uint8Array> {
  const raw = new Map<string, RawTensor>();
  for (const [name, value] of tensors) {
    // A copy: a device that computes on the host hands out its own memory, which the next step may reuse.
    const data = (await value.data()).slice();
    raw.set(name, {
      dtype: value.dtype === 'int32' ? 'I32' : 'F32',
      shape: value.shape,
      bytes: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
    });
  }
  return encodeSafetensors(raw);
}

/** The tensors of such a file, on the device. Types are checked before the first is made, so that a failure leaves none. */
export async function decodeTensors(bytes: Uint8Array, name: string): Promise<Map<string, Tensor>> {
  const file = await openSafetensors(memorySource(bytes, { name }));
  for (const key of file.names()) {
    const { dtype } = file.info(key);
    if (dtype !== 'F32' && dtype !== 'I32')
      throw new FormatError(`${name}: '${key}' is ${dtype}, a checkpoint holds F32 and I32`, { tensor: key, dtype });
  }
  const tensors = new Map<string, Tensor>();
  for (const key of file.names()) {
    const { dtype, shape, bytes: raw } = await file.read(key);
    const { buffer } = new Uint8Array(raw);
    tensors.set(
      key,
      dtype === 'I32' ? tensor(new Int32Array(buffer), [...shape], 'int32') : tensor(new Float32Array(buffer), [...shape], 'float32'),
    );
  }
  return tensors;
}
