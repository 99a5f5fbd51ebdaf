import { FormatError, hostCopy, isOnDevice, type RawTensor, type Tensor } from '@niwaki/tensor';
import { encodeSafetensors, memorySource, openSafetensors } from '@niwaki/hub';

/** A safetensors file of f32 and int32 tensors, bit for bit. */
export async function encodeTensors(tensors: ReadonlyMap<string, Tensor | RawTensor>): Promise<Uint8Array> {
  const raw = new Map<string, RawTensor>();
  for (const [name, value] of tensors) raw.set(name, isOnDevice(value) ? await hostCopy(value) : value);
  return encodeSafetensors(raw);
}

/** The tensors of such a file, in host memory. */
export async function decodeTensors(bytes: Uint8Array, name: string): Promise<Map<string, RawTensor>> {
  const file = await openSafetensors(memorySource(bytes, { name }));
  const tensors = new Map<string, RawTensor>();
  for (const key of file.names()) {
    const { dtype } = file.info(key);
    if (dtype !== 'F32' && dtype !== 'I32')
      throw new FormatError(`${name}: '${key}' is ${dtype}, a checkpoint holds F32 and I32`, { tensor: key, dtype });
    tensors.set(key, await file.read(key));
  }
  return tensors;
}
