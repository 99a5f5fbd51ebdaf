import { loadTail, storeTail } from './entries';
import { least } from './lanes';

/** Task t: entries [t · taskSize, ...) of the sum of `count` operands, in their order; `table` holds their addresses. */
export function addAll(table: usize, count: i32, out: usize, size: i32, taskSize: i32, first: i32, last: i32, scratch: usize): void {
  const end = least(size, last * taskSize);
  const stop = table + ((<usize>count) << 2);
  for (let i = first * taskSize; i < end; i += 4) {
    const at = (<usize>i) << 2;
    const left = end - i;
    if (left >= 4) {
      let sum = v128.load(<usize>load<u32>(table) + at);
      for (let term = table + 4; term < stop; term += 4) sum = f32x4.add(sum, v128.load(<usize>load<u32>(term) + at));
      v128.store(out + at, sum);
    } else {
      let sum = loadTail(<usize>load<u32>(table) + at, left);
      for (let term = table + 4; term < stop; term += 4) sum = f32x4.add(sum, loadTail(<usize>load<u32>(term) + at, left));
      storeTail(out + at, sum, left);
    }
  }
}
