import { playwright } from '@vitest/browser-playwright';
import { defineConfig } from 'vitest/config';
import { chromiumPath, chromiumFlags, swiftshaderEnv } from './scripts/chromium.mjs';

// The workers inherit it: a Vulkan loader is looked for as a process starts, not later.
Object.assign(process.env, swiftshaderEnv());

const resolve = { conditions: ['@niwaki/source', 'module', 'import', 'default'] };
const ssr = {
  resolve: {
    conditions: ['@niwaki/source', 'node', 'import', 'default'],
    externalConditions: ['@niwaki/source', 'node', 'import', 'default'],
  },
};
const setup = (name: string): string => new URL(`./packages/testing/src/setup/${name}.ts`, import.meta.url).pathname;
const tests = (suffix: string): string[] => [`packages/*/test/**/*${suffix}`, `docs/test/**/*${suffix}`];
const allOf = (...kinds: string[]): string[] => kinds.flatMap((kind) => tests(`.${kind}.test.ts`));
const elsewhere = ['gpu', 'browser', 'model', 'site'];

// What a test's name says about where it runs: x.test.ts on cpu and on wasm, x.wasm.test.ts on wasm alone (what takes many
// steps and asks nothing of a device), x.host.test.ts once (no device), x.gpu.test.ts on WebGPU in Node (Dawn) and in Chromium,
// x.browser.test.ts in Chromium, x.model.test.ts on wasm with a real model.
const node = { environment: 'node' as const, testTimeout: 60_000, hookTimeout: 60_000 };
// Many small files follow one another in one process: loading tfjs anew for each took a third of the time.
const together = { ...node, isolate: false };
const headers = { 'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp' };

export default defineConfig({
  resolve,
  ssr,
  test: {
    maxWorkers: 2,
    reporters: ['default', './scripts/plain-reporter.mjs'],
    projects: [
      {
        resolve,
        ssr,
        test: {
          ...together,
          name: 'cpu',
          include: tests('.test.ts'),
          exclude: allOf('wasm', ...elsewhere),
          setupFiles: [setup('cpu')],
        },
      },
      {
        resolve,
        ssr,
        test: { ...together, name: 'wasm', include: tests('.test.ts'), exclude: allOf('host', ...elsewhere), setupFiles: [setup('wasm')] },
      },
      {
        resolve,
        ssr,
        test: { ...node, name: 'model', include: tests('.model.test.ts'), setupFiles: [setup('wasm')], testTimeout: 600_000 },
      },
      // The built site, served and clicked by a Chromium.
      { resolve, ssr, test: { ...node, name: 'site', include: ['docs/test/**/*.site.test.ts'] } },
      { resolve, ssr, test: { ...node, name: 'dawn', include: tests('.gpu.test.ts'), setupFiles: [setup('dawn')] } },
      {
        resolve,
        server: { headers },
        // Loaded only when a device is asked for; found late, they would make the page load again in the middle of a test.
        optimizeDeps: {
          include: ['core', 'backend-cpu', 'backend-wasm', 'backend-webgpu'].map((part) => `@tensorflow/tfjs-${part}`),
        },
        test: {
          name: 'browser',
          include: [...tests('.browser.test.ts'), ...tests('.gpu.test.ts')],
          setupFiles: [setup('browser')],
          testTimeout: 120_000,
          browser: {
            enabled: true,
            headless: true,
            screenshotFailures: false,
            provider: playwright({
              launchOptions: { ...(chromiumPath === undefined ? {} : { executablePath: chromiumPath }), args: chromiumFlags },
            }),
            instances: [{ browser: 'chromium' }],
          },
        },
      },
    ],
  },
});
