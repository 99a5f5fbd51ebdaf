import type { Draw, Parameter, View } from '@niwaki/tensor';
import type { Batch } from '@niwaki/weights';
import type { Model } from '@niwaki/nn';
import type { State, Transform } from '@niwaki/optim';
import type { Estimator } from './estimator.ts';
import type { Objective } from './objective.ts';

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
   * 'eager': each stage's update right after its backward; one matrix of gradient memory; no global norm, no accumulation.
   */
  readonly commit?: 'step' | 'eager';
}

export interface StepInput {
  readonly batches: readonly Batch[];
  /** Counts every step tried, from 0. */
  readonly attempt: number;
  readonly rate: number;
  /** Part of the run that is done, [0, 1]. */
  readonly progress: number;
  readonly draw: Draw;
  readonly signal?: AbortSignal;
}

export interface StepResult {
  /** Mean over the window's target tokens, nats. */
  readonly loss: number;
  /** Global L2 norm of the gradient before clipping; NaN in 'eager', where it never exists at once. */
  readonly gradNorm: number;
  /** False: the loss was not finite, parameters and state are as before. */
  readonly applied: boolean;
  /** Target tokens of the window. */
  readonly tokens: number;
}

/** Why each parameter's gradient is streamed or held, and how many bytes are held at most. */
export interface GradientPlan {
  readonly entries: readonly { readonly path: string; readonly bytes: number; readonly held: boolean; readonly reason: string }[];
  /** Gradient bytes alive at once, at most. */
  readonly peakBytes: number;
  toString(): string;
}

export interface Step {
  readonly plan: GradientPlan;
  run(input: StepInput): Promise<StepResult>;
  /** Applied updates so far. */
  updates(): number;
  /** Optimizer state by parameter path. */
  state(): ReadonlyMap<string, State>;
  /** Puts back what `state()` and `updates()` gave; takes the tensors over. */
  restore(state: ReadonlyMap<string, State>, updates: number): void;
  stateBytes(): number;
  dispose(): void;
}
