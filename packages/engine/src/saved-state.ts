import { deviceCopy, dispose, hostCopy, isOnDevice, keep, type RawTensor, type Tensor } from '@niwaki/tensor';
import type { State } from '@niwaki/optim';

/** An optimizer's or a participant's state outside of a step: each tensor on the device, or bit for bit in host memory. */
export type SavedState = Readonly<Record<string, Tensor | RawTensor | number>>;

/** Those on the device. */
export const tensorsIn = (state: SavedState): Tensor[] =>
  Object.values(state).filter((value): value is Tensor => typeof value === 'object' && isOnDevice(value));

/** State lives from step to step, whatever scope it was made in. */
export function keepState<S extends SavedState>(state: S): S {
  tensorsIn(state).forEach(keep);
  return state;
}

/** The same with every tensor on the device: those of host memory are made, the others stay what they are. All of them kept. */
export const onDevice = (state: SavedState): State =>
  keepState(
    Object.fromEntries(
      Object.entries(state).map(([name, value]) => [name, typeof value === 'number' || isOnDevice(value) ? value : deviceCopy(value)]),
    ),
  );

/** The same without a byte on the device, once everything is read: the tensors are disposed. */
export async function onHost(state: SavedState): Promise<SavedState> {
  const copies = await Promise.all(
    Object.entries(state).map(async ([name, value]) => [
      name,
      typeof value === 'object' && isOnDevice(value) ? await hostCopy(value) : value,
    ]),
  );
  dispose(tensorsIn(state));
  return Object.fromEntries(copies);
}
