import { checkOptions, outOfRange } from '@niwaki/tensor';
import type { Group } from '@niwaki/optim';

export interface LoraPlusOptions {
  /** Rate of B over that of A, at least 1; default 16. */
  readonly ratio?: number;
  /** Rate of adapters of embeddings over that of A; default 1/200, the reference's 1e-6 beside a rate of 2e-4. */
  readonly embeddingRatio?: number;
}

/**
 * Groups for an optimizer that gives B a larger rate than A (LoRA+, Hayou et al. 2024): A stands at 1/√in, B at zero, and
 * one rate for both moves one of them too slowly in wide models. By role: B times `ratio`; biases and norms times `ratio`
 * without decay; magnitudes (DoRA) at A's rate, without decay; adapters of embeddings times `embeddingRatio`; all else as
 * the optimizer says. The reference goes by names and types of modules instead, so that a magnitude and anything with
 * 'norm' in its name land among the B.
 * @throws ConfigError for a ratio below 1, or an embeddingRatio that is no finite number from 0
 * @example adamw({ learningRate: 2e-4, groups: loraPlus({ ratio: 16 }) })
 */
export function loraPlus(options: LoraPlusOptions = {}): Group[] {
  checkOptions('loraPlus', options, ['ratio', 'embeddingRatio']);
  const { ratio = 16, embeddingRatio = 1 / 200 } = options;
  check('ratio', ratio, 1);
  check('embeddingRatio', embeddingRatio, 0);
  return [
    { at: ['**.lora_embedding_A.*', '**.lora_embedding_B.*'], rateScale: embeddingRatio },
    { roles: ['adapterB'], rateScale: ratio },
    { roles: ['bias', 'norm'], rateScale: ratio, weightDecay: 0 },
    { roles: ['magnitude'], weightDecay: 0 },
  ];
}

function check(field: string, given: number, least: number): void {
  if (given >= least && given < Infinity) return;
  throw outOfRange('loraPlus', field, given, `a finite number of at least ${least}`);
}
