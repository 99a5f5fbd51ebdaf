import { customGrad, engine, getBackend, getKernel, type NamedAttrMap, type NamedTensorMap, type Tensor } from '@tensorflow/tfjs-core';
import { observed, onTape } from './observed.ts';
import { sayRemake, type Remake } from './thin-record.ts';

/**
 * An op of ours: a kernel name, and a reference composed from tfjs ops that works on every device and is the truth in
 * tests. A device that has a faster kernel registers it with tfjs under the same name; nothing else changes.
 */
export interface Op<I extends NamedTensorMap, A extends object> {
  readonly kernelName: string;
  /** Same inputs, attributes and outputs as the kernel. Not differentiated: each op brings its own gradient. */
  reference(inputs: I, attrs: A): Tensor[];
}

/** Runs an op on the current device: its kernel where one is registered, else the reference. */
export function runOp<I extends NamedTensorMap, A extends object>(op: Op<I, A>, inputs: I, attrs: A): Tensor[] {
  const kernel = getKernel(op.kernelName, getBackend());
  if (kernel === undefined) return engine().tidy(() => op.reference(inputs, attrs));
  if (observed()) {
    const outputs = engine().runKernel(op.kernelName, inputs, attrs as unknown as NamedAttrMap);
    return (Array.isArray(outputs) ? outputs : [outputs]) as unknown as Tensor[];
  }
  // The engine's own way costs a launch more than this kernel's arguments do: two more lookups by name and two scopes.
  const made = kernel.kernelFunc({ inputs, attrs: attrs as unknown as NamedAttrMap, backend: engine().backend });
  return (Array.isArray(made) ? made : [made]).map((info) => engine().makeTensorFromTensorInfo(info));
}

const nothing = (): void => undefined;

/**
 * One differentiable function with a gradient of our own. `forward` may save what it will need; what `inputs` does not
 * list (packed weights, masks, tables) gets no gradient and is never walked by the tape.
 * @param options `remake`: the result once more, where that is nearly free: `Tape.thin` may then let go of it
 */
export function withGradient(
  inputs: readonly Tensor[],
  forward: (save: (tensors: Tensor[]) => void) => Tensor,
  gradient: (dy: Tensor, saved: Tensor[]) => Tensor[],
  { remake }: { readonly remake?: Remake } = {},
): Tensor {
  if (!onTape()) return engine().tidy(() => forward(nothing));
  const result = customGrad((...args) => {
    const save = args[args.length - 1] as unknown as (tensors: Tensor[]) => void;
    return { value: forward(save), gradFunc: (dy: Tensor, saved: Tensor[]) => gradient(dy, saved) };
  })(...(inputs as Tensor[]));
  if (remake !== undefined) sayRemake(result, remake);
  return result;
}

/**
 * The same for several results: `gradient` is given one dy for each, zeros where nothing came back, and `remake` has one for
 * each that has any. tfjs's engine runs and records such functions, while its `customGrad` refuses them.
 */
export function withGradients(
  inputs: readonly Tensor[],
  forward: (save: (tensors: Tensor[]) => void) => Tensor[],
  gradient: (dys: Tensor[], saved: Tensor[]) => Tensor[],
  { remake = [] }: { readonly remake?: readonly (Remake | undefined)[] } = {},
): Tensor[] {
  if (!onTape()) return engine().tidy(() => forward(nothing));
  const run = engine() as unknown as { runKernelFunc(call: CustomCall): Tensor[] };
  const results = run.runKernelFunc({
    inputs: Object.fromEntries(inputs.map((input, i) => [i, input])),
    forwardFunc: (_, save) => forward(save),
    backwardsFunc: (dys, saved) => {
      const gradients = gradient(dys, saved);
      return Object.fromEntries(inputs.map((_, i) => [i, () => gradients[i]!]));
    },
  });
  for (const [i, result] of results.entries()) if (remake[i] !== undefined) sayRemake(result, remake[i]);
  return results;
}

/** What tfjs's engine takes for a function of more than one result. */
interface CustomCall {
  readonly inputs: NamedTensorMap;
  forwardFunc(backend: unknown, save: (tensors: Tensor[]) => void): Tensor[];
  backwardsFunc(dys: Tensor[], saved: Tensor[]): Readonly<Record<string, () => Tensor>>;
}

/**
 * Whether each of these tensors is alone over its buffer: whoever is about to dispose them may have a kernel write there. A
 * clone, a reshape and what a tape saved hold the buffer too; so does a tensor that is given twice.
 */
export const heldOnce = (...tensors: readonly Tensor[]): boolean =>
  new Set(tensors).size === tensors.length && tensors.every(({ dataId }) => engine().backend.refCount(dataId) === 1);

/** The same value, with no gradient behind it: a function of no inputs leaves no path on the tape. */
export function stopGradient<T extends Tensor>(x: T): T {
  return withGradient(
    [],
    () => x.clone(),
    () => [],
  ) as T;
}
