import { laneSum } from './lanes';

const BLOCK: u32 = 512;

/**
 * Task t: Σ x² of the run of entries in table[t] = [address, count], to found[t] (f64). In blocks whose totals are added up,
 * so that the rounding error does not grow with the length.
 */
export function sumSquares(table: usize, found: usize, first: i32, last: i32, scratch: usize): void {
  for (let task = first; task < last; task++) {
    let x = <usize>load<u32>(table + ((<usize>task) << 3));
    let count = load<u32>(table + ((<usize>task) << 3), 4);
    let total: f64 = 0;
    while (count >= 8) {
      const block = count < BLOCK ? count & ~7 : BLOCK;
      count -= block;
      const end = x + ((<usize>block) << 2);
      let a = f32x4.splat(0);
      let b = f32x4.splat(0);
      for (; x < end; x += 32) {
        const u = v128.load(x);
        const v = v128.load(x, 16);
        a = f32x4.add(a, f32x4.mul(u, u));
        b = f32x4.add(b, f32x4.mul(v, v));
      }
      total += <f64>laneSum(f32x4.add(a, b));
    }
    for (; count > 0; count--) {
      total += <f64>load<f32>(x) * <f64>load<f32>(x);
      x += 4;
    }
    store<f64>(found + ((<usize>task) << 3), total);
  }
}
