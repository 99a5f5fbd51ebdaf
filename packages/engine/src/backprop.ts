import { checkOptions, dispose, tidy, type Scalar, type Sink } from '@niwaki/tensor';
import { backpropTraits } from './check.ts';
import type { Estimator, Turn } from './estimator.ts';
import { backwardHead, defaultChunkBytes } from './head.ts';
import { createPass, type Pass } from './pass.ts';
import { createRecords, roomOf, type Room } from './records.ts';
import { routeOf } from './route.ts';
import { verifyRemade, verifySame } from './verify.ts';

export interface BackpropOptions {
  /** Bytes of logits the head holds at once; default 16 MiB. A trained head takes at least a quarter as many rows as it is wide. */
  readonly chunkBytes?: number;
  /** Debugging: reads back what is computed again, stages and saved tensors, and throws where it is not the first, bit for bit. */
  readonly verifyRecompute?: boolean;
}

const backpropNames = ['chunkBytes', 'verifyRecompute'] as const;

/**
 * What of a block its backward computes again: all of it ('full'), norms and activations ('selective': what products and
 * attention gave is kept; Korthikanti et al. 2022, 2205.05198, draw the line elsewhere, around attention), or nothing ('none').
 */
export type Recompute = (typeof recomputes)[number];

/** The choices there are, from the least memory to the most. */
export const recomputes = ['full', 'selective', 'none'] as const;

/** Of `recompute`, `keepBytes` and `memoryBudget`, which say how much blocks save for the backward pass, at most one. */
export interface BlockwiseOptions extends BackpropOptions {
  /** The same for every block; default 'full', the least memory. */
  readonly recompute?: Recompute;
  /**
   * Bytes of saved tensors that may stay instead of being computed again. The last stages stay, as many as fit; where whole
   * records do not, first of all norms and activations are computed again, of the earliest stages.
   */
  readonly keepBytes?: number;
  /**
   * The same by bytes of all tensors on the device, the model's too: as much stays as leaves room for the head, one stage's
   * backward and every gradient. Where the model alone is over it, nothing stays.
   */
  readonly memoryBudget?: number;
}

/**
 * Backprop that keeps only what stages read from one another (one hidden state a block), computes each stage again under
 * the tape and hands its gradients to the sink at once. Memory: `blocks · rows · width · 4` bytes plus one block's tape;
 * price: one more forward without the product that ends each block, whose value only the next one reads (Chen et al. 2016,
 * with one segment a block), less what `recompute`, `keepBytes` or `memoryBudget` let stay.
 * The result is the same bit for bit, whatever stays.
 * @throws ConfigError where more than one of the three is given
 */
export function blockwiseBackprop(options: BlockwiseOptions = {}): Estimator {
  checkOptions('blockwiseBackprop', options, ['recompute', 'keepBytes', 'memoryBudget', ...backpropNames]);
  return backprop('blockwise', roomOf(options), options);
}

/**
 * Backprop with every stage's tape kept: nothing is computed twice, for about ten times the memory of `blockwiseBackprop`.
 * For small models and short rows. Gradients equal those of `blockwiseBackprop`.
 */
export function fullTapeBackprop(options: BackpropOptions = {}): Estimator {
  checkOptions('fullTapeBackprop', options, backpropNames);
  return backprop('full tape', roomOf({ recompute: 'none' }), options);
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
      if (options.verifyRecompute) await verifyRemade(pass, s);
      records.makeRoom();
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
