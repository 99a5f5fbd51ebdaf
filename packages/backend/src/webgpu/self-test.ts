import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import { DeviceError } from '@niwaki/tensor';
import { dispatch } from './dispatch.ts';
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

/** Two dependent runs with two outputs each, read back: what the dispatcher assumes of tfjs's private members holds. */
export async function selfTest(backend: WebGPUBackend): Promise<void> {
  const values = Float32Array.from({ length: 70 }, (_, i) => i - 3.5);
  const x = backend.makeTensorInfo([70], 'float32', values);
  const outputs = { twice: { shape: [70] }, bits: { shape: [70], dtype: 'int32' as const } };
  const run = { outputs, uniforms: { count: 70, offset: 0.5 }, groups: fold(70, lanes) };
  try {
    const first = dispatch(backend, double, { ...run, inputs: { x } });
    const second = dispatch(backend, double, { ...run, inputs: { x: first.twice } });
    const twice = (await backend.read(second.twice.dataId)) as Float32Array;
    const bits = (await backend.read(first.bits.dataId)) as Int32Array;
    const expected = new Int32Array(values.buffer);
    if (!values.every((v, i) => twice[i] === 4 * v + 1.5) || !expected.every((v, i) => bits[i] === v)) throw new Error('wrong numbers');
    for (const { dataId } of [x, ...Object.values(first), ...Object.values(second)]) backend.disposeData(dataId);
  } catch (cause) {
    throw new DeviceError('webgpu: the self-test of our shaders failed on this device', {
      cause,
      help: "Use init({ device: 'wasm' }) and report the browser and graphics card.",
    });
  }
}
