/** What differs between Node and a page. Node's modules are asked for at run time, so that no bundler follows them into a page. */
export const isNode: boolean = typeof process === 'object' && typeof process.versions?.node === 'string';

/** Whether memory can be shared with workers here: always in Node, in a page only behind the two isolation headers. */
export const canShare = (): boolean => typeof SharedArrayBuffer === 'function' && (isNode || globalThis.crossOriginIsolated === true);

export function cores(): number {
  if (isNode) return process.getBuiltinModule('node:os').availableParallelism();
  return globalThis.navigator?.hardwareConcurrency ?? 1;
}

export async function readBytes(url: URL): Promise<Uint8Array> {
  if (url.protocol === 'file:') return new Uint8Array(process.getBuiltinModule('node:fs').readFileSync(url));
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url.href}: ${response.status} ${response.statusText}`);
  return new Uint8Array(await response.arrayBuffer());
}

/** The end of a channel to a thread that runs `source`; it never keeps a process alive. */
export interface Thread {
  post(message: unknown): void;
  /** Resolves with the thread's first message. */
  ready(): Promise<void>;
  end(): void;
}

export function startThread(source: string): Thread {
  if (isNode) {
    const { Worker } = process.getBuiltinModule('node:worker_threads');
    const prelude =
      "const { parentPort } = require('node:worker_threads'); const post = (m) => parentPort.postMessage(m); const receive = (f) => parentPort.once('message', f);";
    const worker = new Worker(`${prelude}\n${source}`, { eval: true });
    return {
      post: (message) => worker.postMessage(message),
      ready: () =>
        new Promise((resolve, reject) => {
          worker.once('message', () => {
            worker.unref();
            resolve();
          });
          worker.once('error', reject);
        }),
      end: () => void worker.terminate(),
    };
  }
  const prelude = 'const post = (m) => self.postMessage(m); const receive = (f) => { self.onmessage = (event) => f(event.data); };';
  const url = URL.createObjectURL(new Blob([`${prelude}\n${source}`], { type: 'text/javascript' }));
  const worker = new Worker(url);
  return {
    post: (message) => worker.postMessage(message),
    ready: () =>
      new Promise((resolve, reject) => {
        const settle = (): void => {
          URL.revokeObjectURL(url);
          resolve();
        };
        worker.addEventListener('message', settle, { once: true });
        worker.addEventListener('error', (event) => reject(new Error(event.message)), { once: true });
      }),
    end: () => worker.terminate(),
  };
}
