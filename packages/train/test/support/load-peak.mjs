// What loading holds, in a process of its own: node --expose-gc load-peak.mjs <niwaki's index.js> <model>
const [entry, model] = process.argv.slice(2);
const { init, load } = await import(entry);
const { openMemoryLedger } = await import(new URL('../../../tensor/dist/index.js', import.meta.url));
await init({ device: 'wasm', threads: 1 });
globalThis.gc();
const ledger = openMemoryLedger();
const start = process.memoryUsage();
const startPeak = process.resourceUsage().maxRSS * 1024;

// Garbage is collected while the bytes of one tensor are alive: what is left is what loading needs, and not what V8 puts off.
let live = 0;
const measure = () => {
  globalThis.gc();
  const { rss, heapTotal } = process.memoryUsage();
  live = Math.max(live, rss - start.rss - (heapTotal - start.heapTotal));
};
const started = performance.now();
let total = 0;
let measuredAt = 0;
let spent = 0;
await load(model, {
  onProgress: (progress) => {
    const from = performance.now();
    total = progress.total;
    if (progress.loaded - measuredAt > 4e6) {
      measure();
      measuredAt = progress.loaded;
    }
    spent += performance.now() - from;
  },
});
measure();
const milliseconds = performance.now() - started - spent;
const { heapTotal } = process.memoryUsage();
process.stdout.write(
  JSON.stringify({
    packed: total,
    milliseconds,
    tensors: ledger.peak(),
    live,
    heap: heapTotal - start.heapTotal,
    resident: process.resourceUsage().maxRSS * 1024 - startPeak,
  }),
);
