/**
 * Rows [count, width] of each of the batch in the place of those of a target [length, width] from `lead` + at[0] on, where they
 * all fit. Task t: one of the batch. `old` is copied first where the target is not written over (`old` 0).
 */
export function putRows(
  target: usize,
  old: usize,
  rows: usize,
  at: usize,
  length: i32,
  count: i32,
  width: i32,
  lead: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const from = lead + load<i32>(at);
  const fits = from >= 0 && from <= length - count;
  const side = (<usize>(length * width)) << 2;
  const run = (<usize>(count * width)) << 2;
  for (let task: usize = first; task < <usize>last; task++) {
    const y = target + task * side;
    if (old !== 0) memory.copy(y, old + task * side, side);
    if (fits) memory.copy(y + ((<usize>(from * width)) << 2), rows + task * run, run);
  }
}
