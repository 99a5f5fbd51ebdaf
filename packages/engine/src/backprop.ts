import { dispose, memory, tidy, type Scalar, type Sink } from '@niwaki/tensor';
import type { Estimator, Turn } from './estimator.ts';
import { backwardHead } from './head.ts';
import { createPass, type Pass } from './pass.ts';
import { routeOf } from './route.ts';
import { verifySame } from './verify.ts';

export interface BackpropOptions {
  /** Bytes of logits the head holds at once; default 8 MiB. A trained head takes at least as many rows as it is wide. */
  readonly chunkBytes?: number;
  /** Debugging: reads every recomputed stage back and throws where it is not the first forward, bit for bit. */
  readonly verifyRecompute?: boolean;
}

export interface BlockwiseOptions extends BackpropOptions {
  /**
   * Bytes of saved tensors that may stay instead of being computed again; default 0. Stages are kept in order while
   * they fit; the result is the same bit for bit.
   */
  readonly keepBytes?: number;
}

/**
 * Backprop that keeps only what stages read from one another (one hidden state a block), computes each stage again under
 * the tape and hands its gradients to the sink at once. Memory: `blocks · rows · width · 4` bytes plus one block's tape;
 * price: one more forward (Chen et al. 2016, with one segment a block).
 */
export function blockwiseBackprop({ keepBytes = 0, ...options }: BlockwiseOptions = {}): Estimator {
  return backprop('blockwise', keepBytes, options);
}

/**
 * Backprop with every stage's tape kept: nothing is computed twice, for about ten times the memory of `blockwiseBackprop`.
 * For small models and short rows. Gradients equal those of `blockwiseBackprop`.
 */
export function fullTapeBackprop(options: BackpropOptions = {}): Estimator {
  return backprop('full tape', Infinity, options);
}

function backprop(name: string, keepBytes: number, options: BackpropOptions): Estimator {
  return {
    name,
    gives: 'dense',
    estimate: async (turn, sink) => {
      const pass = createPass(turn, routeOf(turn.model, turn.wrt));
      try {
        return await estimate(pass, turn, sink, { keepBytes, ...options });
      } finally {
        pass.dispose();
      }
    },
  };
}

async function estimate(pass: Pass, turn: Turn, sink: Sink, options: BackpropOptions & { keepBytes: number }): Promise<Scalar> {
  const { head, first } = pass.route;
  let room = options.keepBytes;
  for (let s = 0; s < head; s++) {
    const record = s >= first && room > 0;
    const before = memory().numBytes;
    tidy(() => pass.forward(s, { record }));
    if (record) {
      room -= memory().numBytes - before;
      if (room < 0) pass.forget(s);
    }
    await turn.between?.();
  }
  const loss = await backwardHead(pass, turn, sink, options);
  try {
    for (let s = head - 1; s >= first; s--) {
      if (options.verifyRecompute) await verifySame(pass, s);
      tidy(() => pass.backward(s, sink));
      await turn.between?.();
    }
  } catch (error) {
    dispose(loss);
    throw error;
  }
  return loss;
}
