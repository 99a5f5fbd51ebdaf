/** Four entries at a time, and the last one to three of a run through the same lanes, so that no entry has a formula of its own. */

/** 1 to 3 entries, zeros beyond. */
// @ts-ignore: decorator
@inline
export function loadTail(at: usize, count: i32): v128 {
  let v = v128.load32_zero(at);
  if (count > 1) v = f32x4.replace_lane(v, 1, load<f32>(at, 4));
  if (count > 2) v = f32x4.replace_lane(v, 2, load<f32>(at, 8));
  return v;
}

// @ts-ignore: decorator
@inline
export function storeTail(at: usize, v: v128, count: i32): void {
  store<f32>(at, f32x4.extract_lane(v, 0));
  if (count > 1) store<f32>(at, f32x4.extract_lane(v, 1), 4);
  if (count > 2) store<f32>(at, f32x4.extract_lane(v, 2), 8);
}

/** Up to 4 entries of those that are left. */
// @ts-ignore: decorator
@inline
export function loadEntries(at: usize, left: i32): v128 {
  return left >= 4 ? v128.load(at) : loadTail(at, left);
}

// @ts-ignore: decorator
@inline
export function storeEntries(at: usize, v: v128, left: i32): void {
  if (left >= 4) v128.store(at, v);
  else storeTail(at, v, left);
}
