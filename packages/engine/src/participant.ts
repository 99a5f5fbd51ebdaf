import { ConfigError, type Draw, type Parameter } from '@niwaki/tensor';
import type { Model } from '@niwaki/nn';

/** What a participant is told of a step. */
export interface StepMoment {
  readonly model: Model;
  /** Counts every step tried, from 0. */
  readonly attempt: number;
  readonly draw: Draw;
  /** Everything the run trains, in the model's order. */
  readonly parameters: readonly Parameter[];
}

/** Something that takes part in every step beside objective and optimizer, e.g. chooses what trains in it. */
export interface Participant {
  /** Says what it does and with which options: a run resumes with the same name only. */
  readonly name: string;
  /**
   * Before the first pass, never between micro-batches: the parameters that train in this step, or undefined for all. What
   * leaves the choice loses its optimizer state and the memory of it; what comes back starts anew, bias correction too.
   * Must be a function of what it is given, so that a resumed run chooses the same. No read-backs.
   */
  begin?(moment: StepMoment): ReadonlySet<Parameter> | undefined;
  /** After the step. May read back. @param applied whether the step changed anything */
  end?(moment: StepMoment & { readonly applied: boolean }): Promise<void>;
}

/** What trains in a step: what every participant lets train. @throws ConfigError where that is nothing */
export function chosenBy(participants: readonly Participant[], moment: StepMoment): ReadonlySet<Parameter> {
  let chosen: readonly Parameter[] = moment.parameters;
  for (const participant of participants) {
    const own = participant.begin?.(moment);
    if (own !== undefined) chosen = chosen.filter((parameter) => own.has(parameter));
  }
  if (chosen.length > 0) return new Set(chosen);
  const names = participants.map(({ name }) => name);
  throw new ConfigError(`step ${moment.attempt} has nothing to train: ${names.join(' and ')} left out every parameter`, {
    attempt: moment.attempt,
    participants: names,
  });
}
