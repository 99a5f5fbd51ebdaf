import { memory } from '@niwaki/tensor';
import { afterEach } from 'vitest';

export interface Disposed {
  push(...things: { dispose(): void }[]): void;
}

/** For things that a file's tests make: freed after each test, the last first, and then no tensor may be left of it. */
export function disposedAfterEach(): Disposed {
  const start = memory().numTensors;
  const things: { dispose(): void }[] = [];
  afterEach(() => {
    while (things.length > 0) things.pop()!.dispose();
    const left = memory().numTensors - start;
    if (left !== 0) throw new Error(`${left} tensors are left of a test`);
  });
  return things;
}
