import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { expect, it } from 'vitest';
import type { WasmExports } from '../src/wasm/binary.ts';
import { createWasmDevice } from '../src/wasm/device.ts';
import type { TfjsModule } from '../src/wasm/tfjs-module.ts';

it('wakes threads for calls that are worth it, and runs the others where it is', () => {
  const ran: [where: string, first: number, last: number][] = [];
  const kernels: WasmExports = { work: (...args) => ran.push(['here', args.at(-3)!, args.at(-2)!]) };
  const device = createWasmDevice({
    backendName: 'fake',
    backend: {} as BackendWasm,
    module: { _malloc: () => 64, _free: () => {}, cwrap: () => () => 0 } as unknown as TfjsModule,
    kernels,
    relaxed: true,
    pool: { threads: 2, run: (_kernel, _args, { count }) => void ran.push(['on threads', 0, count]), close: () => {} },
  });
  for (const [tasks, work] of [
    [8, 299_999],
    [8, 300_000],
    [1, 1e9],
    [0, 1e9],
  ] as const)
    device.run('work', [], { tasks, work });
  expect(ran).toEqual([
    ['here', 0, 8],
    ['on threads', 0, 8],
    ['here', 0, 1],
  ]);
});
