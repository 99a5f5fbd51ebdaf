import {
  ConfigError,
  DataError,
  plainView,
  refuse,
  StateError,
  type Conflict,
  type Draw,
  type Parameter,
  type Party,
  type View,
} from '@niwaki/tensor';
import type { Batch } from '@niwaki/weights';
import { siteParty, type Model } from '@niwaki/nn';
import { transformParty, type Transform } from '@niwaki/optim';
import { blockwiseBackprop } from './backprop.ts';
import { check, partyOf, type CommitMode } from './check.ts';
import type { Estimator } from './estimator.ts';
import { planGradients, type GradientPlan } from './gradient-plan.ts';
import type { Objective } from './objective.ts';
import { createOptimizerStates } from './optimizer-state.ts';
import type { Participant, StepMoment } from './participant.ts';
import type { SavedState } from './saved-state.ts';
import { choiceOf, restoreParticipants, statesOf, watching, type Choice } from './taking-part.ts';
import { routeOf } from './route.ts';
import { runAtomic, runEager } from './window.ts';

export interface StepOptions {
  readonly model: Model;
  readonly objective: Objective;
  readonly optimizer: Transform;
  /** Default: blockwise backprop. */
  readonly estimator?: Estimator;
  /** Default: the model's trainable parameters. */
  readonly wrt?: readonly Parameter[];
  readonly view?: View;
  /**
   * 'step' (default): everything atomic at the end; clipping and accumulation work.
   * 'eager': each update as soon as its gradient is final; one matrix of gradient memory; no global norm, no accumulation.
   */
  readonly commit?: CommitMode;
  /** What else takes part in each step, e.g. a choice of what trains in it. */
  readonly participants?: readonly Participant[];
}

export interface StepInput {
  readonly batches: readonly Batch[];
  /** Counts every step tried, from 0. */
  readonly attempt: number;
  readonly rate: number;
  /** Part of the run that is done, [0, 1]. */
  readonly progress: number;
  /** Steps of the run, where they are known. */
  readonly steps?: number;
  readonly draw: Draw;
  /** Honored between pieces until the first parameter changes; the step throws AbortError and nothing has changed. */
  readonly signal?: AbortSignal;
}

export interface StepResult {
  /** Mean over the window's target tokens, nats. */
  readonly loss: number;
  /** Global L2 norm of the gradient before clipping; NaN in 'eager', where it never exists at once. */
  readonly gradNorm: number;
  /**
   * False: the loss or the gradient was not finite, parameters and state are as before. In 'eager' a finite loss with a
   * gradient that is not keeps back only the parameters it reaches.
   */
  readonly applied: boolean;
  /** Target tokens of the window. */
  readonly tokens: number;
}

export interface Step {
  /** Of what trains now; of everything before the first step, where participants choose. */
  readonly plan: GradientPlan;
  run(input: StepInput): Promise<StepResult>;
  /** Applied updates so far. */
  updates(): number;
  /** Optimizer state by parameter path, that of what does not train now included, and what participants must find again. */
  state(): ReadonlyMap<string, SavedState>;
  /** Puts back what `state()` and `updates()` gave, on the device or in host memory; takes the tensors over. */
  restore(state: ReadonlyMap<string, SavedState>, updates: number): void;
  /** Optimizer state on the device. */
  stateBytes(): number;
  dispose(): void;
}

/**
 * One optimizer step over a model: gradients of every micro-batch, the gate, the update. Adapters must be attached and
 * `trainable` set before: what is trained is fixed here, and the optimizer's state is made here.
 * @throws ConfigError where nothing trains, or where the optimizer needs what the commit mode cannot give
 */
export function createStep(options: StepOptions): Step {
  const { model, objective, optimizer, estimator = blockwiseBackprop(), view = plainView, commit = 'step' } = options;
  const { participants = [] } = options;
  const wrt = new Set(options.wrt ?? [...model.parameters().values()].filter(({ trainable }) => trainable));
  const sites = trainedSites(model, wrt);
  const conflicts = (accumulate: number): readonly Conflict[] =>
    check({
      sites,
      training: {
        optimizer: transformParty(optimizer),
        estimator: partyOf(estimator),
        objective: partyOf(objective),
        participants: participants.map(partyOf),
        commit,
        accumulate,
      },
    });
  refuse(conflicts(1), { optimizer: optimizer.name });
  refuseFrozen(wrt);
  const planOf = (trained: ReadonlySet<Parameter>): GradientPlan =>
    planGradients(routeOf(model, trained), { commit, measured: optimizer.measure !== undefined });
  const states = createOptimizerStates(optimizer, [...wrt]);
  const choosing = participants.some(({ begin }) => begin !== undefined);
  let chosen: ReadonlySet<Parameter> = wrt;
  let plan = planOf(wrt);
  let updates = 0;
  // Where participants choose, state for all of it may never be there at once.
  if (!choosing) states.select(wrt, 0);
  const choose = async ({ trains, idle }: Choice): Promise<void> => {
    await states.rest(idle, updates);
    states.select(trains, updates, idle);
    if (trains.size === chosen.size && [...trains].every((parameter) => chosen.has(parameter))) return;
    chosen = trains;
    plan = planOf(trains);
  };
  let phase: 'idle' | 'running' | 'disposed' = 'idle';
  const mustBeIdle = (what: string): void => {
    if (phase !== 'idle') throw new StateError(`${what} while the step is ${phase}`, { phase, help: 'Await one step before the next.' });
  };

  return {
    get plan() {
      return plan;
    },
    run: async (input) => {
      mustBeIdle('run()');
      const weights = input.batches.map((batch) => objective.weight(batch));
      const tokens = weights.reduce((sum, weight) => sum + weight, 0);
      refuseEmpty(weights);
      if (weights.length > 1) refuse(conflicts(weights.length), { batches: weights.length });
      phase = 'running';
      const moment: StepMoment = {
        model,
        attempt: input.attempt,
        draw: input.draw,
        parameters: [...wrt],
        updates,
        ...(input.steps !== undefined && { steps: input.steps }),
        microBatches: weights.filter((weight) => weight > 0).length,
        optimizer,
      };
      try {
        if (choosing) await choose(choiceOf(participants, moment));
        const watch = watching(participants, moment);
        const result = await (commit === 'eager' ? runEager : runAtomic)({
          ...input,
          estimate: (turn, store) => estimator.estimate({ ...turn, ...watch, model, objective, wrt: chosen, view }, { push: store.add }),
          optimizer,
          states,
          weights,
          updates,
          limit: weights.length > 1 ? plan.accumulatingBytes : plan.peakBytes,
        });
        states.settle(result.counted);
        if (result.counted) updates++;
        const editable = { get: states.get, replace: states.replace, updates: (parameter: Parameter) => updates - states.since(parameter) };
        for (const { end } of participants) await end?.({ ...moment, applied: result.applied, states: editable });
        return { loss: result.loss, gradNorm: Math.sqrt(result.squaredNorm), applied: result.applied, tokens };
      } finally {
        phase = 'idle';
      }
    },
    updates: () => updates,
    state: () => new Map([...states.byPath(), ...statesOf(participants)]),
    restore: (given, count) => {
      mustBeIdle('restore()');
      states.restore(restoreParticipants(participants, given));
      updates = count;
    },
    stateBytes: () => states.bytes(),
    dispose: () => {
      mustBeIdle('dispose()');
      states.dispose();
      for (const { dispose } of participants) dispose?.();
      phase = 'disposed';
    },
  };
}

function refuseFrozen(wrt: ReadonlySet<Parameter>): void {
  for (const { path, trainable, role } of wrt) {
    if (!trainable)
      throw new ConfigError(`'${path}' is frozen and cannot be trained`, {
        path,
        role,
        help: 'Set `trainable` on it, or leave it out of `wrt`.',
      });
  }
}

/** Sites whose own matrix trains. */
const trainedSites = (model: Model, wrt: ReadonlySet<Parameter>): readonly Party[] =>
  model
    .stages()
    .flatMap(({ sites }) => sites)
    .filter(({ weight }) => weight !== undefined && Object.values(weight.parts).some((part) => wrt.has(part)))
    .map(siteParty);

function refuseEmpty(weights: readonly number[]): void {
  if (weights.some((weight) => weight > 0)) return;
  throw new DataError(`the ${weights.length} batches of this step have nothing to learn: no target`, { batches: weights.length });
}
