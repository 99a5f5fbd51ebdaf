import type { Weight } from '@niwaki/weights';
import type { State } from '@niwaki/optim';
import type { Turn } from './estimator.ts';
import type { Participant, StepMoment } from './participant.ts';

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

/** Gives participants what is theirs. @returns the rest, which is the optimizer's */
export function restoreParticipants(participants: readonly Participant[], given: ReadonlyMap<string, State>): ReadonlyMap<string, State> {
  const left = new Map(given);
  for (const [i, { restore }] of participants.entries()) {
    const prefix = prefixOf(i);
    const own = new Map([...given].filter(([name]) => name.startsWith(prefix)).map(([name, state]) => [name.slice(prefix.length), state]));
    if (restore === undefined) continue;
    restore(own);
    for (const name of own.keys()) left.delete(prefix + name);
  }
  return left;
}
