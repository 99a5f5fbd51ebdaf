// Writes docs/generated/ops.md: which op has a kernel on which device, read from what is registered after init().
// Run after a build; `--check` writes nothing and fails where the file is out of date.
import { spawnSync } from 'node:child_process';
import { swiftshaderEnv } from './chromium.mjs';
import { writeOrCheck } from './generated-page.mjs';

// A Vulkan loader is looked for as a process starts: the table needs a WebGPU device, on the CPU if need be.
const wanted = swiftshaderEnv();
if (wanted.LD_LIBRARY_PATH !== undefined && process.env.NIWAKI_OPS_TABLE === undefined) {
  const env = { ...process.env, ...wanted, NIWAKI_OPS_TABLE: '1' };
  process.exit(spawnSync(process.execPath, process.argv.slice(1), { stdio: 'inherit', env }).status ?? 1);
}

const backend = new URL('../packages/backend/', import.meta.url);
const load = async (name) => {
  const { createRequire } = await import('node:module');
  return createRequire(new URL('package.json', backend))(name);
};
const tfjs = await load('@tensorflow/tfjs-core');
for (const device of ['cpu', 'wasm', 'webgpu']) await load(`@tensorflow/tfjs-backend-${device}`);
const kernelsOf = (name) => new Map(tfjs.getKernelsForBackend(name).map((kernel) => [kernel.kernelName, kernel.kernelFunc]));
const stock = Object.fromEntries(['cpu', 'wasm', 'webgpu'].map((device) => [device, kernelsOf(device)]));

const { init } = await import(new URL('dist/index.js', backend));
const tensor = await import(new URL('../packages/tensor/dist/index.js', import.meta.url));
const devices = ['cpu', 'wasm', 'webgpu'];
const present = {};
for (const device of devices) {
  await init({ device, threads: 1, software: true });
  present[device] = kernelsOf(tfjs.getBackend());
}

const isOurs = (device, name) => present[device].has(name) && present[device].get(name) !== stock[device].get(name);
const table = (head, rows) =>
  [`| ${head.join(' | ')} |`, `|${head.map(() => '---').join('|')}|`, ...rows.map((row) => `| ${row.join(' | ')} |`)].join('\n');

const ops = Object.values(tensor)
  .filter((value) => typeof value?.kernelName === 'string' && typeof value.reference === 'function')
  .map(({ kernelName }) => kernelName)
  .sort();
const names = [...new Set(devices.flatMap((device) => [...present[device].keys(), ...stock[device].keys()]))]
  .filter((name) => !name.startsWith('Niwaki'))
  .sort();
const repaired = names.filter((name) => devices.some((device) => isOurs(device, name)));
const lacking = names.filter((name) => !devices.every((device) => present[device].has(name)));
const state = (device, name) =>
  isOurs(device, name)
    ? stock[device].has(name)
      ? 'ours, replaces tfjs'
      : 'ours, tfjs has none'
    : present[device].has(name)
      ? 'tfjs'
      : '–';

const text = `<!-- Written by scripts/ops-table.mjs from the kernels registered after init(). Do not edit. -->
# Ops and devices

An op of Niwaki runs on every device. Where a device has no kernel for it, its reference runs, composed from the ops of tfjs.

${table(
  ['Op', ...devices],
  ops.map((name) => [name, ...devices.map((device) => (present[device].has(name) ? 'kernel' : 'reference'))]),
)}

## Repairs of tfjs

Kernels of tfjs that Niwaki replaces or supplies, and whether the op has a gradient.

${table(
  ['Kernel', ...devices, 'gradient'],
  repaired.map((name) => [name, ...devices.map((device) => state(device, name)), tfjs.getGradient(name) ? 'yes' : '–']),
)}

## Missing somewhere

Kernels of tfjs that at least one device lacks.

${table(
  ['Kernel', ...devices],
  lacking.map((name) => [name, ...devices.map((device) => (present[device].has(name) ? 'yes' : '–'))]),
)}
`;

writeOrCheck('ops', text, {
  script: import.meta.url,
  told: `${ops.length} ops, ${repaired.length} repairs, ${lacking.length} missing somewhere`,
});
process.exit(0);
