import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import { getKernel, type TensorInfo } from '@tensorflow/tfjs-core';
import { DeviceError } from '@niwaki/tensor';
import { dispatch, takeOver } from './dispatch.ts';
import { fold, lanes, program } from './program.ts';

const double = program({
  key: 'self-test',
  inputs: { x: 'f32' },
  outputs: { twice: 'f32', bits: 'i32' },
  uniforms: { count: 'u32', offset: 'f32' },
  workgroup: lanes,
  main: `
  if (index >= u.count) { return; }
  twice[index] = 2.0 * x[index] + u.offset;
  bits[index] = bitcast<i32>(x[index]);`,
});

/**
 * Takes a backend over and proves it: two dependent runs with two outputs each and a kernel of tfjs's behind them, read back.
 * What the dispatcher assumes of tfjs's private members holds.
 * @throws DeviceError where it does not: nothing may run there
 */
export async function takeOverTested(backend: WebGPUBackend): Promise<void> {
  const values = Float32Array.from({ length: 70 }, (_, i) => i - 3.5);
  const outputs = { twice: { shape: [70] }, bits: { shape: [70], dtype: 'int32' as const } };
  const run = { outputs, uniforms: { count: 70, offset: 0.5 }, groups: fold(70, lanes) };
  try {
    takeOver(backend);
    const x = backend.makeTensorInfo([70], 'float32', values);
    const first = dispatch(backend, double, { ...run, inputs: { x } });
    const second = dispatch(backend, double, { ...run, inputs: { x: first.twice } });
    const sides = { ...second.twice, shape: [7, 10] };
    const turned = getKernel('Transpose', 'webgpu')!.kernelFunc({ inputs: { x: sides }, attrs: { perm: [1, 0] }, backend }) as TensorInfo;
    const twice = (await backend.read(second.twice.dataId)) as Float32Array;
    const bits = (await backend.read(first.bits.dataId)) as Int32Array;
    const columns = (await backend.read(turned.dataId)) as Float32Array;
    const expected = new Int32Array(values.buffer);
    if (!values.every((v, i) => twice[i] === 4 * v + 1.5) || !expected.every((v, i) => bits[i] === v)) throw new Error('wrong numbers');
    if (!columns.every((v, i) => v === twice[(i % 7) * 10 + Math.floor(i / 7)])) throw new Error("wrong numbers of a kernel of tfjs's");
    for (const { dataId } of [x, turned, ...Object.values(first), ...Object.values(second)]) backend.disposeData(dataId);
  } catch (cause) {
    throw new DeviceError('webgpu: the self-test of our shaders failed on this device', {
      cause,
      help: "Use init({ device: 'wasm' }) and report the browser and graphics card.",
    });
  }
}
