import { loadTail, storeTail } from './entries';
import { least } from './lanes';
import { adamDirection, nextMomentum, nextVariance } from './moments';

/** Task t: entries [t · taskSize, ...) of Adam's direction and new moments; the two corrections are scalars in memory. */
export function adam(
  gradient: usize,
  momentum: usize,
  variance: usize,
  correction1: usize,
  correction2: usize,
  direction: usize,
  newMomentum: usize,
  newVariance: usize,
  size: i32,
  beta1: f32,
  beta2: f32,
  eps: f32,
  rest1: f32,
  rest2: f32,
  taskSize: i32,
  first: i32,
  last: i32,
  scratch: usize,
): void {
  const c1 = v128.load32_splat(correction1);
  const c2 = v128.load32_splat(correction2);
  const end = least(size, last * taskSize);
  for (let i = first * taskSize; i < end; i += 4) {
    const at = (<usize>i) << 2;
    const left = end - i;
    const whole = left >= 4;
    const g = whole ? v128.load(gradient + at) : loadTail(gradient + at, left);
    const m = nextMomentum(whole ? v128.load(momentum + at) : loadTail(momentum + at, left), g, beta1, rest1);
    const v = nextVariance(whole ? v128.load(variance + at) : loadTail(variance + at, left), g, beta2, rest2);
    const d = adamDirection(m, v, c1, c2, eps);
    if (whole) {
      v128.store(direction + at, d);
      v128.store(newMomentum + at, m);
      v128.store(newVariance + at, v);
    } else {
      storeTail(direction + at, d, left);
      storeTail(newMomentum + at, m, left);
      storeTail(newVariance + at, v, left);
    }
  }
}
