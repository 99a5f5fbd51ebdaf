import { engine, type KernelBackend, type Tensor, type TensorInfo } from '@tensorflow/tfjs-core';
import { ShapeError, StateError } from './errors.ts';
import { observed } from './observed.ts';
import { dispose, keep } from './tfjs.ts';

/**
 * What a function launched on the device, to be launched again: the same kernels on the same memory, with no JavaScript of the
 * function's between them. A step of a few hundred small launches costs more in JavaScript than in kernels.
 */
export interface Recording<T> {
  /** What the function gave, with what the last replay wrote in it. The recording's own: read it, do not dispose it. */
  readonly result: T;
  /** Bytes that are held for results and all that lies between, beside the inputs. */
  readonly bytes: number;
  /** Puts these values in the place of the inputs and computes the result anew. @throws ShapeError for one of another shape or dtype */
  replay(inputs: Inputs): void;
  dispose(): void;
}

type Inputs = Readonly<Record<string, Tensor>>;

/** What a device offers that can take launches down. */
export interface Recorder {
  /** A tensor of that shape with memory of its own, where others may share theirs by content. What is in it is left open. */
  like(tensor: TensorInfo): TensorInfo;
  /** Values into the memory of another tensor of that shape. */
  overwrite(target: TensorInfo, values: TensorInfo): void;
  /** From now on launches are taken down. */
  begin(): Taking;
}

/** Launches that are being taken down. */
export interface Taking {
  /** They cannot be replayed. */
  breakOff(): void;
  /**
   * Ends it. Undefined where launches alone do not bring back what ran: it read memory from the host or wrote there, or broke off.
   * @param left what stays of what was made; everything else was freed, or there is nothing to replay
   */
  end(left: readonly TensorInfo[]): Launches | undefined;
}

export interface Launches {
  readonly bytes: number;
  /** All of them again. */
  run(): void;
  /** Gives back the memory between. */
  free(): void;
}

const recorders = new WeakMap<KernelBackend, Recorder>();

/** Says how launches of a backend are taken down. */
export const addRecorder = (backend: KernelBackend, recorder: Recorder): void => void recorders.set(backend, recorder);

let current: Taking | undefined;

/** Says that what runs now reads something on the host that another time may be another: a recording of it is none. */
export const unrepeatable = (): void => current?.breakOff();

/**
 * Runs a function of tensors and takes down what it launches. At a replay nothing on the host is asked again: which kernels
 * run, their sizes and scalars, and every tensor that is not among the inputs are what they were, so that whoever replays says
 * that they still hold. Undefined, with nothing left behind, where the device takes nothing down (cpu), where a tape, a profile or
 * tfjs's debug mode looks at each launch, or where `make` did what launches do not bring back: it read tensors from the host, or
 * something `unrepeatable`. It has run then all the same.
 * @param inputs what changes between replays; `make` is given copies that the recording owns
 * @param make synchronous and without a gradient; what it gives and disposes no more stays, and it keeps nothing else
 * @example
 * const square = record({ x }, ({ x }) => ({ y: matMul(x, x, false, true) }));
 * square.replay({ x: other });
 * await square.result.y.data();
 */
export function record<I extends Inputs, T extends Inputs>(inputs: I, make: (own: I) => T): Recording<T> | undefined {
  const recorder = recorders.get(engine().backend);
  if (recorder === undefined || observed()) return undefined;
  if (current !== undefined) throw new StateError('record: something is being recorded already', { help: 'Record the whole at once.' });
  const own: Record<string, Tensor> = {};
  let result: T | undefined;
  let launches: Launches | undefined;
  try {
    for (const [name, tensor] of Object.entries(inputs)) {
      own[name] = keep(engine().makeTensorFromTensorInfo(recorder.like(tensor)));
      recorder.overwrite(own[name], tensor);
    }
    current = recorder.begin();
    try {
      result = make(own as I);
    } catch (error) {
      current.breakOff();
      throw error;
    } finally {
      launches = current.end(Object.values(result ?? {}));
      current = undefined;
    }
  } finally {
    if (launches === undefined) dispose([...Object.values(own), ...Object.values(result ?? {})]);
  }
  if (launches === undefined) return undefined;
  const taken = launches;
  const kept = Object.fromEntries(Object.entries(result!).map(([name, tensor]) => [name, keep(tensor)])) as unknown as T;
  let disposed = false;
  return {
    result: kept,
    bytes: taken.bytes,
    replay: (values) => {
      if (disposed) throw new StateError('the recording was disposed', { help: 'Record anew, or dispose it after the last replay.' });
      for (const [name, target] of Object.entries(own)) recorder.overwrite(target, like(target, values[name], name));
      taken.run();
    },
    dispose: () => {
      if (disposed) return;
      disposed = true;
      dispose([...Object.values(own), ...Object.values(kept)]);
      taken.free();
    },
  };
}

function like(target: Tensor, value: Tensor | undefined, name: string): Tensor {
  if (value?.dtype === target.dtype && value.shape.join() === target.shape.join()) return value;
  const given = value === undefined ? 'nothing' : `${value.dtype} [${value.shape}]`;
  throw new ShapeError(`replay: '${name}' was recorded as ${target.dtype} [${target.shape}], got ${given}`, {
    name,
    expected: target.shape,
    given: value?.shape,
  });
}
