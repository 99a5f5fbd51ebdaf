import { init, type InitOptions } from '@niwaki/backend';
import { choose, memory, runOp, scalar, tensor, tidy, type Op, type Tensor } from '@niwaki/tensor';
import { getBackend, getKernel } from '@tensorflow/tfjs-core';
import { expect } from 'vitest';

/** Values of one input on the host. Integers are int32 tensors. */
export interface Host {
  readonly shape: readonly number[];
  readonly values: Float32Array | Int32Array;
}

export type Hosts = Readonly<Record<string, Host>>;

/** f32 in about [-scale, scale], the same for every run. */
export function floats(shape: readonly number[], seed = 1, scale = 1): Host {
  const size = shape.reduce((product, side) => product * side, 1);
  let state = (seed * 2654435761) >>> 0;
  const values = Float32Array.from({ length: size }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state / 2 ** 31 - 1) * scale;
  });
  return { shape, values };
}

export function ints(shape: readonly number[], of: (i: number) => number): Host {
  const size = shape.reduce((product, side) => product * side, 1);
  return { shape, values: Int32Array.from({ length: size }, (_, i) => of(i)) };
}

export const upload = (inputs: Hosts): Record<string, Tensor> =>
  Object.fromEntries(
    Object.entries(inputs).map(([name, { shape, values }]) => [
      name,
      tensor(values, [...shape], values instanceof Int32Array ? 'int32' : 'float32'),
    ]),
  );

async function download(tensors: readonly Tensor[]): Promise<Host[]> {
  const hosts: Host[] = [];
  for (const t of tensors) hosts.push({ shape: t.shape, values: (await t.data()) as Float32Array | Int32Array });
  return hosts;
}

const disposeAll = (tensors: Iterable<Tensor>): void => [...tensors].forEach((t) => t.dispose());

/** What the op's reference gives on the cpu device. */
export async function reference(op: Op<never, never>, inputs: Hosts, attrs: object): Promise<Host[]> {
  await init({ device: 'cpu' });
  const tensors = upload(inputs);
  const outputs = op.reference(tensors as never, attrs as never);
  const hosts = await download(outputs);
  disposeAll([...Object.values(tensors), ...outputs]);
  return hosts;
}

/** What the WebGPU kernel gives, twice over: equal bits, and no tensor left behind. */
export async function onGpu(op: Op<never, never>, inputs: Hosts, attrs: object): Promise<Host[]> {
  await init({ device: 'webgpu', software: true });
  expect(getKernel(op.kernelName, getBackend()), `${op.kernelName} has a kernel`).toBeDefined();
  return onDevice({ device: 'webgpu', software: true }, op, inputs, attrs);
}

/** What a device gives, by its kernel or by the reference, twice over: equal bits, and no tensor left behind. */
export async function onDevice(device: InitOptions, op: Op<never, never>, inputs: Hosts, attrs: object): Promise<Host[]> {
  await init(device);
  const before = memory();
  const tensors = upload(inputs);
  const outputs = runOp(op, tensors as never, attrs as never);
  const hosts = await download(outputs);
  const again = runOp(op, tensors as never, attrs as never);
  for (const [i, { values }] of (await download(again)).entries()) expect(bits(values)).toEqual(bits(hosts[i]!.values));
  disposeAll([...Object.values(tensors), ...outputs, ...again]);
  expect(memory().numTensors).toBe(before.numTensors);
  expect(memory().numDataBuffers).toBe(before.numDataBuffers);
  return hosts;
}

/** What the kernel gives that may write its results over these inputs, made on the device, in this order; whether it did. */
export async function overwriting(
  op: Op<never, never>,
  inputs: Hosts,
  names: readonly string[],
  attrs: object = {},
): Promise<{ results: Host[]; inPlace: boolean }> {
  await init({ device: 'webgpu', software: true });
  const before = memory();
  const tensors = upload(inputs);
  for (const name of names) {
    const from = tensors[name]!;
    // Not what came from the host: equal constants share a buffer there. By bits: tfjs multiplies integers as floats.
    tensors[name] = tidy(() => choose(scalar(1), from, from));
    from.dispose();
  }
  const outputs = runOp(op, tensors as never, { ...attrs, overwrite: true } as never);
  const inPlace = outputs.every(({ dataId }, i) => dataId === tensors[names[i]!]!.dataId);
  disposeAll(Object.values(tensors));
  const results = await download(outputs);
  disposeAll(outputs);
  expect(memory().numTensors).toBe(before.numTensors);
  expect(memory().numDataBuffers).toBe(before.numDataBuffers);
  return { results, inPlace };
}

const bits = ({ buffer, byteOffset, length }: Float32Array | Int32Array): Int32Array => new Int32Array(buffer, byteOffset, length);

/**
 * The kernel against the reference: every output within `tolerance`, relative to the larger of 1 and the largest value
 * of that output (sums in another order differ by rounding of the whole sum, not of a small remainder).
 */
export async function expectParity(op: Op<never, never>, inputs: Hosts, attrs: object, tolerance = 2e-6): Promise<Host[]> {
  const expected = await reference(op, inputs, attrs);
  const given = await onGpu(op, inputs, attrs);
  expect(given.map(({ shape }) => shape)).toEqual(expected.map(({ shape }) => shape));
  for (const [i, { values }] of given.entries()) {
    const wanted = expected[i]!.values;
    let largest = 1;
    for (const v of wanted) largest = Math.max(largest, Math.abs(v));
    let worst = 0;
    for (let e = 0; e < wanted.length; e++) {
      const off = Math.abs(values[e]! - wanted[e]!);
      if (!(off <= worst)) worst = off;
    }
    expect(worst / largest, `output ${i} of ${op.kernelName}`).toBeLessThanOrEqual(tolerance);
  }
  return given;
}
