import { defineConfig } from 'vitepress';

// WebAssembly threads need a page that is isolated from other origins. These two headers do it; whoever hosts the site
// must send them too, else the wasm device runs on one thread.
const isolation = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
};

export default defineConfig({
  title: 'Niwaki',
  description: 'Quantize, adapt, train and merge real models in the browser and in Node.',
  srcExclude: ['**/node_modules/**'],
  themeConfig: {
    search: { provider: 'local' },
    nav: [
      { text: 'Guide', link: '/guide/' },
      { text: 'Methods', link: '/methods/' },
      { text: 'API', link: '/generated/api' },
      { text: 'Contributing', link: '/contributing/' },
    ],
    sidebar: {
      '/guide/': [
        {
          text: 'Guide',
          items: [
            { text: 'Start', link: '/guide/' },
            { text: 'Command line', link: '/guide/cli' },
            { text: 'In the page', link: '/guide/browser' },
            { text: 'Memory of training', link: '/guide/memory' },
            { text: 'Speed', link: '/guide/bench' },
            { text: 'API', link: '/generated/api' },
            { text: 'Measured', link: '/generated/bench' },
            { text: 'Measured on graphics cards', link: '/generated/gpu' },
          ],
        },
      ],
      '/methods/': [
        {
          text: 'Methods',
          items: [
            { text: 'Overview', link: '/methods/' },
            { text: 'What goes with what', link: '/generated/compositions' },
            { text: 'What fits', link: '/generated/memory' },
            { text: 'What it costs', link: '/generated/quality' },
            { text: 'NF4 and FP4', link: '/methods/nf4' },
            { text: 'NormalFloat of 2 to 8 bits', link: '/methods/normal-float' },
            { text: 'Integers', link: '/methods/integers' },
            { text: 'GPTQ', link: '/methods/gptq' },
            { text: 'AWQ', link: '/methods/awq' },
            { text: 'CBQ', link: '/methods/cbq' },
            { text: 'Rounded activations', link: '/methods/activations' },
            { text: 'Pruning', link: '/methods/pruning' },
            { text: 'Wanda', link: '/methods/wanda' },
            { text: 'SparseGPT', link: '/methods/sparsegpt' },
            { text: 'DSnoT', link: '/methods/dsnot' },
            { text: 'LoRA, rsLoRA, DoRA', link: '/methods/lora' },
            { text: 'LoRA+', link: '/methods/lora-plus' },
            { text: 'PiSSA, OLoRA', link: '/methods/pissa' },
            { text: 'LoftQ, LQ-LoRA', link: '/methods/loftq' },
            { text: '(IA)³', link: '/methods/ia3' },
            { text: 'LN tuning', link: '/methods/ln-tuning' },
            { text: 'Prefix tuning', link: '/methods/prefix-tuning' },
            { text: 'Prompt tuning', link: '/methods/prompt-tuning' },
            { text: 'Bottleneck adapters', link: '/methods/bottleneck' },
            { text: 'Compacter', link: '/methods/compacter' },
            { text: 'QST', link: '/methods/qst' },
            { text: 'SpIEL', link: '/methods/spiel' },
            { text: 'GGUF blocks', link: '/methods/gguf-blocks' },
            { text: 'Stacks of experts', link: '/methods/experts' },
            { text: '8-bit optimizers, Lion', link: '/methods/eight-bit-optimizers' },
            { text: 'GaLore', link: '/methods/galore' },
            { text: 'Q-GaLore', link: '/methods/q-galore' },
            { text: 'FRUGAL', link: '/methods/frugal' },
            { text: 'LISA', link: '/methods/lisa' },
            { text: 'S²FT', link: '/methods/s2ft' },
          ],
        },
      ],
      '/contributing/': [
        {
          text: 'Contributing',
          items: [
            { text: 'Set up', link: '/contributing/' },
            { text: 'Add a method', link: '/contributing/add-a-method' },
            { text: 'Add an op or a kernel', link: '/contributing/add-an-op' },
            { text: 'Add a model family', link: '/contributing/add-a-family' },
            { text: 'Decisions', link: '/adr/' },
          ],
        },
      ],
    },
  },
  vite: {
    resolve: { conditions: ['@niwaki/source', 'module', 'browser', 'import', 'default'] },
    server: { fs: { allow: ['..'] } },
    plugins: [
      {
        name: 'isolation',
        // Ahead of all other middleware: pages as well as files carry the headers.
        configureServer: ({ middlewares }) => {
          middlewares.use((_request, response, next) => {
            for (const [name, value] of Object.entries(isolation)) response.setHeader(name, value);
            next();
          });
        },
      },
    ],
    worker: { format: 'es' },
    build: { target: 'es2022', chunkSizeWarningLimit: 4000 },
    // Found only once the example starts, they would make the page load again in the middle of it.
    optimizeDeps: {
      include: [
        'uplot',
        '@tensorflow/tfjs-core',
        'niwaki > @niwaki/backend > @tensorflow/tfjs-backend-cpu',
        'niwaki > @niwaki/backend > @tensorflow/tfjs-backend-wasm',
        'niwaki > @niwaki/backend > @tensorflow/tfjs-backend-wasm/wasm-out/tfjs-backend-wasm.js',
        'niwaki > @niwaki/backend > @tensorflow/tfjs-backend-webgpu',
        'niwaki > @niwaki/tensor > ml-matrix',
        'niwaki > @niwaki/hub > valibot',
        'niwaki > @niwaki/hub > @huggingface/tokenizers',
        'niwaki > @niwaki/hub > @huggingface/jinja',
      ],
      esbuildOptions: { target: 'es2022' },
    },
  },
});
