/**
 * Packs what a machine with a graphics card needs to check and to time WebGPU, into one folder of under 50 MB that needs no
 * network and no installation there:
 *   node bench/gpu/pack.mjs [folder]        default gpu-kit
 *   bash gpu-kit/run.sh                     there; Vulkan's loader and a driver must be present
 * Linux x64. `--with-node` takes this Node along, for a machine that has none.
 */
import { cpSync, mkdirSync, rmSync, statSync, readdirSync, writeFileSync } from 'node:fs';
import { execFileSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { build } from 'vite';

const { values, positionals } = parseArgs({ allowPositionals: true, options: { 'with-node': { type: 'boolean', default: false } } });
const root = fileURLToPath(new URL('../..', import.meta.url));
const folder = resolve(positionals[0] ?? 'gpu-kit');
const here = createRequire(import.meta.url);
const ofVitest = createRequire(here.resolve('vitest/package.json'));
const entry = (name) => join(root, 'bench', name);

rmSync(folder, { recursive: true, force: true });
await build({
  root,
  configFile: false,
  logLevel: 'warn',
  resolve: {
    conditions: ['@niwaki/source', 'node', 'module', 'import', 'default'],
    alias: [
      { find: /^vitest$/, replacement: entry('gpu/vitest.ts') },
      { find: /^@vitest\/runner$/, replacement: ofVitest.resolve('@vitest/runner') },
      { find: /^@vitest\/expect$/, replacement: ofVitest.resolve('@vitest/expect') },
      { find: /^chai$/, replacement: createRequire(ofVitest.resolve('@vitest/expect')).resolve('chai') },
      // The jobs measure what is built; here the source is bundled.
      { find: /^.*packages\/(\w+)\/dist\/index\.js$/, replacement: join(root, 'packages/$1/src/index.ts') },
    ],
  },
  ssr: { noExternal: true, external: ['webgpu'], resolve: { conditions: ['@niwaki/source', 'node', 'module', 'import', 'default'] } },
  build: {
    ssr: true,
    outDir: folder,
    minify: false,
    target: 'node20',
    copyPublicDir: false,
    emptyOutDir: true,
    rolldownOptions: {
      // The packages are free of side effects; their tests are nothing else.
      treeshake: false,
      input: { parity: entry('gpu/parity.ts'), kernels: entry('gpu/kernels.ts'), job: entry('gpu/job.ts') },
      output: { format: 'es', entryFileNames: '[name].mjs', chunkFileNames: 'chunks/[name]-[hash].mjs' },
    },
  },
});

const dawn = dirname(here.resolve('webgpu/package.json'));
const target = join(folder, 'node_modules/webgpu');
mkdirSync(join(target, 'dist/linux-x64'), { recursive: true });
for (const name of ['package.json', 'index.js', 'dist/linux-x64/dawn.node'])
  cpSync(join(dawn, name), join(target, name), { dereference: true });
cpSync(entry('gpu/run.sh'), join(folder, 'run.sh'));
for (const name of ['smollm2.json', 'torch_lora.py', 'torch_decode.py']) cpSync(entry(`peers/${name}`), join(folder, name));
writeFileSync(join(folder, 'package.json'), '{ "type": "module" }\n');
const native = ['node_modules/webgpu/dist/linux-x64/dawn.node'];
if (values['with-node']) {
  cpSync(process.execPath, join(folder, 'node'));
  native.push('node');
}
// Programs shrink to a quarter; run.sh unpacks them.
execFileSync('tar', ['-cJf', 'native.tar.xz', '--remove-files', ...native], { cwd: folder, env: { ...process.env, XZ_OPT: '-9 -T2' } });

const size = (path) =>
  statSync(path).isDirectory() ? readdirSync(path).reduce((sum, name) => sum + size(join(path, name)), 0) : statSync(path).size;
console.log(`${folder}: ${(size(folder) / 1e6).toFixed(1)} MB`);
