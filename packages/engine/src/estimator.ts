import {
  nounWith,
  type Described,
  type Draw,
  type Noun,
  type Parameter,
  type Range,
  type Scalar,
  type Sink,
  type Tensor,
  type Traits,
  type View,
} from '@niwaki/tensor';
import type { At, Batch, Weight } from '@niwaki/weights';
import type { Model } from '@niwaki/nn';
import type { Objective } from './objective.ts';

/** One micro-batch to be differentiated. */
export interface Turn {
  readonly model: Model;
  readonly objective: Objective;
  readonly batch: Batch;
  /** Parameters to differentiate; frozen ones get no gradient and no memory. */
  readonly wrt: ReadonlySet<Parameter>;
  readonly view: View;
  readonly at: At;
  readonly draw: Draw;
  /** 1 / (target tokens of the whole accumulation window): gradients and the loss carry it. */
  readonly scale: number;
  /** Weights whose gradient somebody wants to see, trained or not. */
  readonly wanted?: ReadonlySet<Weight>;
  /** Told of them in the backward pass, inside its tidy. */
  readonly onGradient?: (weight: Weight, gradient: (rows?: Range) => Tensor) => void;
  /** Called at piece boundaries (never inside a tidy): progress, abort, letting the event loop breathe. */
  readonly between?: () => Promise<void>;
  /** Called once, before the first gradient is pushed, with what `estimate` will return; stays the estimator's. */
  readonly onLoss?: (loss: Scalar) => void;
}

/**
 * How an objective becomes gradients. Each gradient is pushed once per micro-batch, as soon as it is final there; the
 * sink takes its tensors over. A parameter that nothing led to is not pushed. What changes no bit of them is none of its
 * `options`.
 */
export interface Estimator extends Described {
  readonly traits?: Traits;
  readonly gives: 'dense' | 'noise';
  /** 'eval': dropout off (zeroth order). */
  readonly mode?: 'train' | 'eval';
  /** Returns this micro-batch's part of the loss, scaled; the caller disposes it. */
  estimate(turn: Turn, sink: Sink): Promise<Scalar>;
}

export const anEstimator: Noun = nounWith('an estimator, as blockwiseBackprop() gives it', 'estimate');
