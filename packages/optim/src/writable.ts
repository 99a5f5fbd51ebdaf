import type { Gradient } from '@niwaki/tensor';
import type { Updated } from './transform.ts';

/**
 * Whether who takes an update may write into its tensor: nobody else reads what the update made, unless it is in the state too
 * or is kept; the gradient, passed on, is as it was.
 * @param owned whether the gradient might be written into
 */
export function writable({ update, state }: Updated, gradient: Gradient, owned: boolean): boolean {
  if (update.kind !== 'dense' || Object.values(state).includes(update.value)) return false;
  return gradient.kind === 'dense' && gradient.value === update.value ? owned : !update.value.kept;
}
