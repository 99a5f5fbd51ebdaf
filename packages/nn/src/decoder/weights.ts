import type { Parameter } from '@niwaki/tensor';
import type { Weight } from '@niwaki/weights';

/** Everything a decoder stores. `head` is the embedding's own weight where the two are tied. */
export interface DecoderWeights {
  readonly embedding: Weight;
  readonly blocks: readonly BlockWeights[];
  readonly norm: Parameter;
  readonly head: Weight;
}

export interface Linear {
  readonly weight: Weight;
  readonly bias?: Parameter | undefined;
}

export interface BlockWeights {
  readonly inputNorm: Parameter;
  readonly q: Linear;
  readonly k: Linear;
  readonly v: Linear;
  readonly o: Linear;
  readonly queryNorm?: Parameter | undefined;
  readonly keyNorm?: Parameter | undefined;
  readonly mlpNorm: Parameter;
  readonly gate: Linear;
  readonly up: Linear;
  readonly down: Linear;
}
