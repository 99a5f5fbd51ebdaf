import type { Batch } from '@niwaki/weights';

/** What the loop asks of data. Everything follows from plain numbers, so a cursor is (epoch, step) and nothing else. */
export interface TrainData {
  /** Names the content: a run resumes on the same data only. */
  readonly hash: string;
  plan(options: PlanOptions): DataPlan;
}

export interface PlanOptions {
  /** Rows of a micro-batch. */
  readonly batchSize: number;
  /** Micro-batches of a step. */
  readonly accumulate: number;
  readonly seed: number | bigint;
}

export interface DataPlan {
  /** Optimizer steps of one epoch; the last micro-batch and the last window may be short, none is dropped. */
  readonly stepsPerEpoch: number;
  /** @param step within the epoch, from 0 */
  window(epoch: number, step: number): Promise<DataWindow>;
}

/** The micro-batches of one optimizer step, as tensors; whoever asked disposes them. */
export interface DataWindow {
  readonly batches: readonly Batch[];
  /** Input tokens or rows, without padding: what throughput counts. */
  readonly tokens: number;
}
