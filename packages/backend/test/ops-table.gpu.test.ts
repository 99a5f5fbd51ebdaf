import { init, type Device, type InitOptions } from '@niwaki/backend';
import * as niwaki from '@niwaki/tensor';
import { dispose, memory, runOp, type Op } from '@niwaki/tensor';
import { getBackend, getGradient, getKernel, getKernelsForBackend } from '@tensorflow/tfjs-core';
import { beforeAll, describe, expect, test } from 'vitest';
import { gpuMissing } from '../../testing/src/gpu.ts';
import { opCases, type OpCase } from './op-cases.ts';
import { onDevice, reference, type Host, type Hosts } from './parity.ts';

const missing = await gpuMissing();
/** A browser has no files, and where the tests run as one bundle on a card there is no page. */
const hasPage = typeof process === 'object' && process.versions?.node !== undefined && process.env['VITEST'] !== undefined;
const devices: readonly Device[] = ['cpu', 'wasm', 'webgpu'];

const ops = Object.fromEntries(
  Object.values(niwaki as Record<string, unknown>)
    .filter((value): value is Op<never, never> => typeof (value as Op<never, never>)?.reference === 'function')
    .map((op) => [op.kernelName, op]),
);

type Kernels = ReadonlyMap<string, unknown>;
const kernelsOf = (backendName: string): Kernels =>
  new Map(getKernelsForBackend(backendName).map(({ kernelName, kernelFunc }) => [kernelName, kernelFunc]));

/** Which device has a kernel for which op, as the tests below found them right. */
const found: Record<string, Record<string, 'kernel' | 'reference'>> = {};
const stock: Record<string, Kernels> = {};
const present: Record<string, Kernels> = {};

describe.skipIf(missing)('every op of ours on every device', () => {
  beforeAll(async () => {
    // tfjs's own, before the cpu device gets some of ours under its name.
    await Promise.all([
      import('@tensorflow/tfjs-backend-cpu'),
      import('@tensorflow/tfjs-backend-wasm'),
      import('@tensorflow/tfjs-backend-webgpu'),
    ]);
    for (const device of devices) stock[device] = kernelsOf(device);
    for (const device of devices) {
      await init({ device, threads: 1, software: true });
      present[device] = kernelsOf(getBackend());
    }
  });

  test('has a case', () => {
    expect(Object.keys(opCases).sort()).toEqual(Object.keys(ops).sort());
  });

  test.each(Object.entries(opCases).flatMap(([name, one]) => devices.map((device) => [name, device, one] as const)))(
    '%s on %s equals its reference, twice the same, and keeps nothing',
    async (name, device, one) => {
      const op = ops[name]!;
      await expectCase({ device, threads: 1, software: true }, op, one);
      (found[name] ??= {})[device] = getKernel(name, getBackend()) === undefined ? 'reference' : 'kernel';
    },
  );

  test.skipIf(!hasPage)('is in the table as it was found here', async () => {
    await expect(pageOf()).toMatchFileSnapshot('../../../docs/generated/ops.md');
  });
});

async function inputsOf({ inputs, after }: OpCase): Promise<Hosts> {
  if (after === undefined) return inputs;
  const before = opCases[after.op]!;
  const made = await reference(ops[after.op]!, before.inputs, before.attributes);
  return { ...inputs, ...Object.fromEntries(Object.entries(after.outputs).map(([name, i]) => [name, made[i]!])) };
}

async function expectCase(on: InitOptions, op: Op<never, never>, one: OpCase): Promise<void> {
  if (one.unread === true) return expectShapes(on, op, one);
  const inputs = await inputsOf(one);
  const wanted = await reference(op, inputs, one.attributes);
  expectAlike(await onDevice(on, op, inputs, one.attributes), wanted, one);
}

async function expectShapes(on: InitOptions, op: Op<never, never>, { attributes }: OpCase): Promise<void> {
  await init(on);
  const before = memory().numTensors;
  const [given, wanted] = [runOp(op, {} as never, attributes as never), op.reference({} as never, attributes as never)];
  expect(given.map(({ shape }) => shape)).toEqual(wanted.map(({ shape }) => shape));
  dispose([...given, ...wanted]);
  expect(memory().numTensors).toBe(before);
}

function expectAlike(given: readonly Host[], wanted: readonly Host[], { tolerance = 3e-6, bytes = [] }: OpCase): void {
  expect(given.map(({ shape }) => shape)).toEqual(wanted.map(({ shape }) => shape));
  given.forEach(({ values }, i) => {
    const expected = wanted[i]!.values;
    if (bytes.includes(i)) {
      const codes = new Uint8Array(expected.buffer, expected.byteOffset, expected.byteLength);
      const off = [...new Uint8Array(values.buffer, values.byteOffset, values.byteLength)].map((code, at) => Math.abs(code - codes[at]!));
      expect(Math.max(...off)).toBeLessThanOrEqual(1);
      expect(off.filter((distance) => distance > 0).length).toBeLessThan(3);
      return;
    }
    const largest = Math.max(1, ...Array.from(expected, Math.abs));
    const worst = Math.max(0, ...Array.from(expected, (value, at) => Math.abs(values[at]! - value)));
    expect(worst / largest, `output ${i}`).toBeLessThanOrEqual(tolerance);
  });
}

const table = (head: readonly string[], rows: readonly (readonly string[])[]): string =>
  [`| ${head.join(' | ')} |`, `|${head.map(() => '---').join('|')}|`, ...rows.map((row) => `| ${row.join(' | ')} |`)].join('\n');

const isOurs = (device: Device, name: string): boolean =>
  present[device]!.has(name) && present[device]!.get(name) !== stock[device]!.get(name);

function state(device: Device, name: string): string {
  if (isOurs(device, name)) return stock[device]!.has(name) ? 'ours, replaces tfjs' : 'ours, tfjs has none';
  return present[device]!.has(name) ? 'tfjs' : '–';
}

function pageOf(): string {
  const names = [...new Set(devices.flatMap((device) => [...present[device]!.keys(), ...stock[device]!.keys()]))]
    .filter((name) => !(name in ops))
    .sort();
  const repaired = names.filter((name) => devices.some((device) => isOurs(device, name)));
  const lacking = names.filter((name) => !devices.every((device) => present[device]!.has(name)));
  return `<!-- Written by packages/backend/test/ops-table.gpu.test.ts from what it found right. Do not edit. -->
# Ops and devices

An op of Niwaki runs on every device. Where a device has no kernel for it, its reference runs, composed from the ops of tfjs.
Each cell was compared with the reference on the cpu device by the test that wrote it.

${table(
  ['Op', ...devices],
  Object.keys(ops)
    .sort()
    .map((name) => [name, ...devices.map((device) => found[name]?.[device] ?? '**failed**')]),
)}

## Repairs of tfjs

Kernels of tfjs that Niwaki replaces or supplies, and whether the op has a gradient.

${table(
  ['Kernel', ...devices, 'gradient'],
  repaired.map((name) => [name, ...devices.map((device) => state(device, name)), getGradient(name) === undefined ? '–' : 'yes']),
)}

## Missing somewhere

Kernels of tfjs that at least one device lacks.

${table(
  ['Kernel', ...devices],
  lacking.map((name) => [name, ...devices.map((device) => (present[device]!.has(name) ? 'yes' : '–'))]),
)}
`;
}
