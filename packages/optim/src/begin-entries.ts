import { ConfigError, greater, tidy, where, zerosLike, type Parameter, type Tensor } from '@niwaki/tensor';
import type { NewEntries, State, Transform } from './transform.ts';

/**
 * A state after some entries of its parameter gave their places to new ones. New tensors where it changes.
 * @throws ConfigError for a transform whose state holds something of single entries and does not say how they begin
 */
export function beginEntries(transform: Transform, state: State, entries: NewEntries, parameter: Parameter): State {
  if (transform.begin !== undefined) return transform.begin(state, entries, parameter);
  if (Object.keys(state).length === 0) return state;
  throw new ConfigError(`'${transform.name}' does not say what its state of '${parameter.path}' becomes where entries begin anew`, {
    transform: transform.name,
    path: parameter.path,
    state: Object.keys(state),
    help: 'Use agedAdamw, adamw, lion, sgd or sm3 where entries come and go.',
  });
}

/** An entry's own number where it is new, its old one elsewhere. @param value absent: 0 */
export const beginAt = ({ fresh }: NewEntries, old: Tensor, value?: Tensor): Tensor =>
  tidy(() => where(greater(fresh, 0), value ?? zerosLike(old), old));
