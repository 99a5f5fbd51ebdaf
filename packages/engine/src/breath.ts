/**
 * Lets the event loop run (aborts, messages, painting) when it was held for longer than `everyMs`; cheap otherwise.
 * A plain `await` would not do: it runs promises only.
 */
export function createBreath({ everyMs = 50 }: { everyMs?: number } = {}): () => Promise<void> {
  let last = performance.now();
  return async () => {
    if (performance.now() - last < everyMs) return;
    await nextTask();
    last = performance.now();
  };
}

/**
 * Resolves in a task of its own, behind those that wait. Not by a timer: it would stand idle for a millisecond in Node and
 * for four in a page, long enough for the threads of the wasm device to fall asleep.
 */
export function nextTask(): Promise<void> {
  const { setImmediate } = globalThis as { setImmediate?: (task: () => void) => void };
  return new Promise((resolve) => {
    if (setImmediate !== undefined) return setImmediate(resolve);
    const { port1, port2 } = new MessageChannel();
    port1.addEventListener('message', () => {
      port1.close();
      resolve();
    });
    port1.start();
    port2.postMessage(undefined);
  });
}
