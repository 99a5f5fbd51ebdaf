import { loadEntries, storeEntries } from './entries';
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
    const g = loadEntries(gradient + at, left);
    const m = nextMomentum(loadEntries(momentum + at, left), g, beta1, rest1);
    const v = nextVariance(loadEntries(variance + at, left), g, beta2, rest2);
    const d = adamDirection(m, v, c1, c2, eps);
    storeEntries(direction + at, d, left);
    storeEntries(newMomentum + at, m, left);
    storeEntries(newVariance + at, v, left);
  }
}
