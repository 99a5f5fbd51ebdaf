/** For tests that run on WebGPU in Node and in a page: nothing here touches the file system. */
import { init } from '@niwaki/backend';
import { DeviceError } from '@niwaki/tensor';

/** For comparing with another device; packages below the devices do not depend on them. */
export { init } from '@niwaki/backend';

/**
 * Makes WebGPU current, a software adapter included.
 * @returns why there is none, which it prints: `describe.skipIf(await gpuMissing())`
 */
export async function gpuMissing(): Promise<string | undefined> {
  try {
    await init({ device: 'webgpu', software: true });
    return undefined;
  } catch (error) {
    if (!DeviceError.isInstance(error)) throw error;
    // eslint-disable-next-line no-console -- a skipped suite says so
    console.warn(`niwaki tests: GPU tests are skipped. ${error.message}`);
    return error.message;
  }
}
