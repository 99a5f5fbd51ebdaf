// Measures this device in a worker. The page sends { device, … }, and gets messages by `kind`.
import { init, measureSpeed, type SpeedOptions } from 'niwaki';

interface Asked extends SpeedOptions {
  readonly device: 'auto' | 'wasm' | 'webgpu';
  /** Takes a WebGPU that runs on the CPU, which says nothing about a machine; for tests. */
  readonly software: boolean;
}

async function measure({ device: wanted, software, ...options }: Asked): Promise<void> {
  const device = await init({ device: wanted, software });
  postMessage({ kind: 'device', ...device });
  for await (const row of measureSpeed(options)) postMessage({ kind: 'row', ...row });
  postMessage({ kind: 'done' });
}

addEventListener('message', ({ data }) => {
  measure(data).catch((error: Error) => postMessage({ kind: 'failed', message: error.message }));
});
