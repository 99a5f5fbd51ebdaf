import { dispose, tidy, type Scalar, type Sink } from '@niwaki/tensor';
import { backpropTraits } from './check.ts';
import type { Estimator, Turn } from './estimator.ts';
import { backwardHead, defaultChunkBytes } from './head.ts';
import { createPass, type Pass } from './pass.ts';
import { createRecords, type Room } from './records.ts';
import { routeOf } from './route.ts';
import { verifySame } from './verify.ts';

export interface BackpropOptions {
  /** Bytes of logits the head holds at once; default 16 MiB. A trained head takes at least a quarter as many rows as it is wide. */
  readonly chunkBytes?: number;
  /** Debugging: reads every recomputed stage back and throws where it is not the first forward, bit for bit. */
  readonly verifyRecompute?: boolean;
}

export interface BlockwiseOptions extends BackpropOptions {
  /** Bytes of saved tensors that may stay instead of being computed again; default 0. The last stages stay, as many as fit. */
  readonly keepBytes?: number;
  /**
   * Bytes of all tensors on the device, the model's too: as many stages stay as leave room for the head, one stage's
   * backward and every gradient. Instead of `keepBytes`. Where the model alone is over it, nothing stays.
   */
  readonly memoryBudget?: number;
}

/**
 * Backprop that keeps only what stages read from one another (one hidden state a block), computes each stage again under
 * the tape and hands its gradients to the sink at once. Memory: `blocks · rows · width · 4` bytes plus one block's tape;
 * price: one more forward without the product that ends each block, whose value only the next one reads (Chen et al. 2016,
 * with one segment a block), less what `keepBytes` or `memoryBudget` let stay.
 * The result is the same bit for bit, whatever stays.
 */
export function blockwiseBackprop({ keepBytes = 0, memoryBudget, ...options }: BlockwiseOptions = {}): Estimator {
  return backprop('blockwise', { keepBytes, ...(memoryBudget !== undefined && { memoryBudget }) }, options);
}

/**
 * Backprop with every stage's tape kept: nothing is computed twice, for about ten times the memory of `blockwiseBackprop`.
 * For small models and short rows. Gradients equal those of `blockwiseBackprop`.
 */
export function fullTapeBackprop(options: BackpropOptions = {}): Estimator {
  return backprop('full tape', { keepBytes: Infinity }, options);
}

function backprop(name: string, room: Room, options: BackpropOptions): Estimator {
  return {
    name,
    // Another sum of the same terms; what stays, and what is verified, changes nothing.
    options: { chunkBytes: options.chunkBytes ?? defaultChunkBytes },
    traits: backpropTraits,
    gives: 'dense',
    estimate: async (turn, sink) => {
      const pass = createPass(turn, routeOf(turn.model, turn.wrt));
      try {
        return await estimate(pass, turn, sink, { room, ...options });
      } finally {
        pass.dispose();
      }
    },
  };
}

/** Parts, each in a tidy, with room to await after each. */
async function inParts(parts: Generator<void, void, undefined>, { between }: Turn): Promise<void> {
  const next = (): boolean => {
    let done: boolean | undefined;
    tidy(() => {
      ({ done } = parts.next());
    });
    return done === true;
  };
  try {
    for (let last = false; !last;) {
      last = next();
      await between?.();
    }
  } finally {
    // What a failure between two of them leaves.
    parts.return();
  }
}

async function estimate(pass: Pass, turn: Turn, sink: Sink, options: BackpropOptions & { room: Room }): Promise<Scalar> {
  const { head, first } = pass.route;
  const records = createRecords(pass, turn, options);
  try {
    for (let s = 0; s < head; s++) {
      records.forward(s);
      await turn.between?.();
    }
  } finally {
    records.dispose();
  }
  const loss = await backwardHead(pass, turn, sink, options);
  try {
    for (let s = head - 1; s >= first; s--) {
      if (options.verifyRecompute) await verifySame(pass, s);
      await inParts(pass.backwardInParts(s, sink), turn);
    }
  } catch (error) {
    dispose(loss);
    throw error;
  }
  return loss;
}
