// Finds a Chromium on this machine, and the driver that lets WebGPU run on its CPU renderer.
import { existsSync } from 'node:fs';
import { dirname } from 'node:path';
import { chromium } from 'playwright';

const installed = [
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome',
  '/Applications/Chromium.app/Contents/MacOS/Chromium',
  '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome',
];

/** Path of a browser: the one named in CHROMIUM_PATH, an installed one, or Playwright's own download. */
export const findChromium = () =>
  [process.env.CHROMIUM_PATH, ...installed, chromium.executablePath()].find((path) => path && existsSync(path));

export const chromiumPath = findChromium();

export const chromiumFlags = [
  '--no-sandbox',
  '--enable-unsafe-webgpu',
  '--use-webgpu-adapter=swiftshader',
  // Otherwise SwiftShader compiles a shader with 16 KiB of workgroup memory for seconds.
  '--disable-dawn-features=use_vulkan_zero_initialize_workgroup_memory_extension',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--disable-quic',
  '--no-first-run',
];

/** Vulkan driver file for Dawn in Node, where a Chromium ships one. */
export const swiftshaderIcd = () =>
  [
    '/usr/lib/chromium/vk_swiftshader_icd.json',
    '/usr/lib/chromium-browser/vk_swiftshader_icd.json',
    '/opt/google/chrome/vk_swiftshader_icd.json',
  ].find((path) => existsSync(path));

/** What Dawn in Node must find in its environment, from the start of the process, to run on that driver and on Chromium's own Vulkan loader. */
export function swiftshaderEnv() {
  const icd = process.env.VK_ICD_FILENAMES ?? swiftshaderIcd();
  if (icd === undefined) return {};
  const libraries = [process.env.LD_LIBRARY_PATH, dirname(icd)].filter((path) => path);
  return { VK_ICD_FILENAMES: icd, LD_LIBRARY_PATH: libraries.join(':') };
}
