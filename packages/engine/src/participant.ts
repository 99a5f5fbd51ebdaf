import { nounWith, type Draw, type Noun, type Parameter, type Range, type Tensor, type Traits } from '@niwaki/tensor';
import type { Weight } from '@niwaki/weights';
import type { Model } from '@niwaki/nn';
import type { State, Transform } from '@niwaki/optim';

/** What a participant is told of a step. */
export interface StepMoment {
  readonly model: Model;
  /** Counts every step tried, from 0. */
  readonly attempt: number;
  readonly draw: Draw;
  /** Everything the run trains, in the model's order. */
  readonly parameters: readonly Parameter[];
  /** Applied updates before this step. */
  readonly updates: number;
  /** Steps of the whole run, where they are known. */
  readonly steps?: number;
  /** Micro-batches that this step runs: their gradients add up to the step's. */
  readonly microBatches: number;
  readonly optimizer: Transform;
}

/** The optimizer's state between steps, for who takes entries away and puts others in their places. */
export interface EditableStates {
  /** Undefined for what did not train in the step. */
  get(parameter: Parameter): State | undefined;
  /** Takes the tensors over; what it replaces is disposed, unless it is in the new state too. */
  replace(parameter: Parameter, state: State): void;
  /** Updates that a parameter's state has counted. */
  updates(parameter: Parameter): number;
}

/**
 * Optimizer state of a parameter that does not train for a while. 'drop': freed, and when the parameter comes back it begins
 * anew, bias correction too. 'keep': it stays on the device and goes on with its own count of updates. 'offload': the same bit
 * for bit, and meanwhile it is in host memory: a read-back when it leaves, between two steps.
 */
export type IdleState = 'drop' | 'keep' | 'offload';

/** Of a parameter whose state is not lost. */
export type WaitingState = Exclude<IdleState, 'drop'>;

/** Something that takes part in every step beside objective and optimizer, e.g. chooses what trains in it. */
export interface Participant {
  /** Says what it does and with which options: a run resumes with the same name only. */
  readonly name: string;
  readonly traits?: Traits;
  /** What it does depends on how many steps the run has: the run resumes with the same number only. */
  readonly byLength?: true;
  /**
   * Before the first pass, never between micro-batches: the parameters that train in this step, or undefined for all.
   * Must be a function of what it is given, so that a resumed run chooses the same. No read-backs.
   */
  begin?(moment: StepMoment): ReadonlySet<Parameter> | undefined;
  /** What becomes of the optimizer state of what leaves its choice; default 'drop'. */
  readonly idleState?: IdleState;
  /** Before the first pass: weights whose gradient it wants to see in this step, trained or not. */
  wants?(moment: StepMoment): ReadonlySet<Weight>;
  /**
   * dL/dW of a wanted weight, in the backward pass of every micro-batch. Computed when asked for, whole [out, in] or some
   * rows of it; it lives in the pass's tidy, and so does what is made of it unless it is kept. No read-backs: whether
   * the step will be applied is told at its end.
   */
  gradient?(weight: Weight, gradient: (rows?: Range) => Tensor, moment: StepMoment): void;
  /** After the step. May read back. @param applied whether the step changed anything */
  end?(moment: StepMoment & { readonly applied: boolean; readonly states: EditableStates }): Promise<void>;
  /** What a resumed run must find again, by names without spaces. The tensors stay its own. */
  state?(): ReadonlyMap<string, State>;
  /** Takes over what `state` gave in the run that was saved. @throws StateError for what is none of its own */
  restore?(state: ReadonlyMap<string, State>): void;
  /** Frees what it holds; it may take part in another run afterwards. */
  dispose?(): void;
}

export const aParticipant: Noun = nounWith('something that takes part in steps, as lisa() gives it', 'name');
