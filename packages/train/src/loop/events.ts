/** Bytes by who owns them, at a step's boundary. */
export interface MemoryByOwner {
  /** Frozen parameters, in the format they are stored in. */
  readonly base: number;
  /** Parameters of attached adapters. */
  readonly adapter: number;
  /** Trained parameters that belong to no adapter. */
  readonly trained: number;
  readonly optimizer: number;
  /** Gradient bytes alive at once inside a step, at most: planned, not present at the boundary. */
  readonly gradients: number;
  /** What the step held beside the owners above when it held most: activations, gradients, temporaries. Measured. */
  readonly activations: number;
  /** All tensors of the device when there were most of them in the step. Measured. */
  readonly peak: number;
  /** All tensors of the device at the boundary. */
  readonly total: number;
}

export interface StepEvent {
  readonly kind: 'step';
  /** Steps tried so far, this one included: from 1. */
  readonly step: number;
  /** Steps of the whole run. */
  readonly steps: number;
  /** Epoch this step belongs to, from 0. */
  readonly epoch: number;
  /** Mean over the target tokens of the step, nats. */
  readonly loss: number;
  /** Global L2 norm before clipping; NaN where the gradient never exists at once (commit 'eager'). */
  readonly gradNorm: number;
  readonly learningRate: number;
  /** Input tokens of this step, padding left out, by the time it took. */
  readonly tokensPerSecond: number;
  /** Input tokens since the beginning of the run. */
  readonly tokens: number;
  /** Target tokens of this step: what the loss is the mean of. */
  readonly targets: number;
  readonly memory: MemoryByOwner;
  /** By the mean pace of this process, evaluations and checkpoints included. */
  readonly etaSeconds: number;
  /** false: the loss was not finite, and parameters and state are as before. */
  readonly applied: boolean;
}

export interface EvaluationEvent {
  readonly kind: 'evaluation';
  readonly step: number;
  readonly metrics: Readonly<Record<string, number>>;
}

export interface CheckpointEvent {
  readonly kind: 'checkpoint';
  readonly step: number;
  /** Name inside the checkpoint folder. */
  readonly name: string;
}

/** The run goes on from a checkpoint: the first event, where there was one. */
export interface ResumeEvent {
  readonly kind: 'resume';
  readonly step: number;
}

export type TrainEvent = StepEvent | EvaluationEvent | CheckpointEvent | ResumeEvent;
