import { afterEach, expect, it, vi } from 'vitest';
import { createBreath, nextTask } from '../src/breath.ts';

afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

it.each([true, false])('runs the tasks that wait, without a timer of its own (setImmediate: %s)', async (immediate) => {
  if (!immediate) vi.stubGlobal('setImmediate', undefined);
  const { port1, port2 } = new MessageChannel();
  const heard = vi.fn();
  port1.addEventListener('message', heard);
  port1.start();
  vi.useFakeTimers({ toFake: ['setTimeout'] });
  port2.postMessage('abort');
  const breathe = createBreath({ everyMs: 0 });
  for (let i = 0; i < 100; i++) await breathe();
  port1.close();
  expect(heard).toHaveBeenCalledOnce();
});

it('does nothing before its time', async () => {
  const task = vi.fn();
  void nextTask().then(task);
  await createBreath({ everyMs: 60_000 })();
  expect(task).not.toHaveBeenCalled();
});
