import type { Transform } from '@niwaki/optim';

/**
 * An optimizer that writes over nothing: it is not told what it owns, and its updates are held twice, so that nobody writes
 * over these either. What the same one does in place has to have its bits.
 */
export const beside = (optimizer: Transform): Transform => ({
  ...optimizer,
  update: (gradient, state, context) => {
    const made = optimizer.update(gradient, state, { ...context, owned: false });
    if (made.update.kind !== 'dense') return made;
    const [value] = [made.update.value.clone(), made.update.value.clone()];
    return { ...made, update: { kind: 'dense', value } };
  },
});
