import { engine, env } from '@tensorflow/tfjs-core';

/** What tfjs's engine keeps to itself. */
interface Watcher {
  isTapeOn(): boolean;
  readonly state: { readonly profiling: boolean };
}
const watcher = (): Watcher => engine() as unknown as Watcher;

/** Whether tfjs's tape takes down what runs now: not outside of a gradient, and not within an op that brings its own. */
export const onTape = (): boolean => watcher().isTapeOn();

/** Whether someone watches launches: the tape, a profile, or the check of values that tfjs's debug mode makes after each. */
export const observed = (): boolean => onTape() || watcher().state.profiling || env().getBool('DEBUG');
