import { StateError } from '@niwaki/tensor';
import type { Model } from '@niwaki/nn';

/** Something is at work on the model already, and a second at once would leave neither what it should be. */
export class BusyModelError extends StateError {}

const holders = new WeakMap<Model, string>();

/**
 * Takes hold of a model for work that changes it over many awaits. Whoever takes hold lets go on every way out.
 * @param what for people: 'a training run'
 * @returns lets go; a second call does nothing
 * @throws BusyModelError while somebody else holds it
 */
export function holdModel(model: Model, what: string): () => void {
  const holder = holders.get(model);
  if (holder !== undefined) {
    throw new BusyModelError(`${what} cannot begin: ${holder} is at work on this model`, {
      holder,
      what,
      help: 'Wait for its end. The events of a run are taken to the last, or given up with `break` or `return()`: then it lets go.',
    });
  }
  holders.set(model, what);
  let held = true;
  return () => {
    if (held) holders.delete(model);
    held = false;
  };
}
