import { ConfigError, dispose, type Parameter } from '@niwaki/tensor';
import type { Weight } from '@niwaki/weights';
import type { State } from '@niwaki/optim';
import type { Turn } from './estimator.ts';
import type { IdleState, Participant, StepMoment, WaitingState } from './participant.ts';
import { onDevice, tensorsIn, type SavedState } from './saved-state.ts';

/** What trains in a step, and what has left it for now without losing its optimizer state. */
export interface Choice {
  readonly trains: ReadonlySet<Parameter>;
  readonly idle: ReadonlyMap<Parameter, WaitingState>;
}

/** From what holds least to what holds most. */
const idleStates: readonly IdleState[] = ['drop', 'offload', 'keep'];

/**
 * What every participant lets train. Of several that leave a parameter out, the one that holds least decides on its state.
 * @throws ConfigError where nothing is left
 */
export function choiceOf(participants: readonly Participant[], moment: StepMoment): Choice {
  const left = new Map<Parameter, IdleState>();
  for (const participant of participants) {
    const { idleState = 'drop' } = participant;
    const own = participant.begin?.(moment);
    for (const parameter of own === undefined ? [] : moment.parameters) {
      if (!own!.has(parameter))
        left.set(
          parameter,
          idleStates.find((state) => state === idleState || state === left.get(parameter))!,
        );
    }
  }
  const trains = moment.parameters.filter((parameter) => !left.has(parameter));
  if (trains.length > 0) {
    const idle = [...left].filter((entry): entry is [Parameter, WaitingState] => entry[1] !== 'drop');
    return { trains: new Set(trains), idle: new Map(idle) };
  }
  const names = participants.map(({ name }) => name);
  throw new ConfigError(`step ${moment.attempt} has nothing to train: ${names.join(' and ')} left out every parameter`, {
    attempt: moment.attempt,
    participants: names,
  });
}

/** What the backward passes of a step tell participants: nothing where none wants to know. */
export function watching(participants: readonly Participant[], moment: StepMoment): Pick<Turn, 'wanted' | 'onGradient'> {
  const wanted = new Map<Weight, Participant[]>();
  for (const participant of participants)
    for (const weight of participant.wants?.(moment) ?? []) wanted.set(weight, [...(wanted.get(weight) ?? []), participant]);
  if (wanted.size === 0) return {};
  return {
    wanted: new Set(wanted.keys()),
    onGradient: (weight, gradient) => {
      for (const { gradient: told } of wanted.get(weight)!) told?.(weight, gradient, moment);
    },
  };
}

/** Before a name of a participant's state; no parameter's path begins so. */
const prefixOf = (index: number): string => `#${index}.`;

export const statesOf = (participants: readonly Participant[]): ReadonlyMap<string, State> =>
  new Map(participants.flatMap(({ state }, i) => [...(state?.() ?? [])].map(([name, own]): [string, State] => [prefixOf(i) + name, own])));

/** Gives participants what is theirs, on the device. @returns the rest, which is the optimizer's */
export function restoreParticipants(
  participants: readonly Participant[],
  given: ReadonlyMap<string, SavedState>,
): ReadonlyMap<string, SavedState> {
  const left = new Map(given);
  for (const [i, { restore }] of participants.entries()) {
    const prefix = prefixOf(i);
    if (restore === undefined) continue;
    const own = [...given].filter(([name]) => name.startsWith(prefix));
    const taken = new Map(own.map(([name, state]) => [name.slice(prefix.length), onDevice(state)]));
    try {
      restore(taken);
    } catch (error) {
      for (const state of taken.values()) dispose(tensorsIn(state));
      throw error;
    }
    for (const [name] of own) left.delete(name);
  }
  return left;
}
