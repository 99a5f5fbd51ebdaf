import type { WasmDevice } from '../device.ts';

/** Entries of one task: some 16 KB an operand, so that a task is worth a thread and all of them fit the cache. */
const taskSize = 4096;
/** Multiply-adds that an entry of a transcendental function is worth. */
const workPerEntry = 24;

/** kernel(...addresses, size, ...scalars, task size, ...) over `size` entries. */
export function runEntries(
  device: WasmDevice,
  kernel: string,
  addresses: readonly number[],
  size: number,
  scalars: readonly number[] = [],
): void {
  device.run(kernel, [...addresses, size, ...scalars, taskSize], { tasks: Math.ceil(size / taskSize), work: size * workPerEntry });
}

/** Rows of one task, for rows of `width` entries: as many as make some 16 K entries. */
export const taskRowsOf = (width: number): number => Math.max(1, Math.floor(16_384 / Math.max(1, width)));

/** kernel(...args, rows of a task, ...) over rows of `width` entries. */
export function runRows(
  device: WasmDevice,
  kernel: string,
  args: readonly number[],
  { rows, width }: { rows: number; width: number },
): void {
  const taskRows = taskRowsOf(width);
  device.run(kernel, [...args, taskRows], { tasks: Math.ceil(rows / taskRows), work: rows * width * 8 });
}
