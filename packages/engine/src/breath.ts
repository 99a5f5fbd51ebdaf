/**
 * Lets the event loop run (aborts, messages, painting) when it was held for longer than `everyMs`; cheap otherwise.
 * A plain `await` would not do: it runs promises only.
 */
export function createBreath({ everyMs = 50 }: { everyMs?: number } = {}): () => Promise<void> {
  let last = performance.now();
  return async () => {
    if (performance.now() - last < everyMs) return;
    await new Promise((resolve) => setTimeout(resolve, 0));
    last = performance.now();
  };
}
