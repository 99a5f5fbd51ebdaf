import { targetNames, type TargetOptions } from '@niwaki/peft';
import { checkCount, checkFlag, checkOneOf, checkOptions, outOfRange } from '@niwaki/tensor';
import { findInitializer, type Initializer } from './initialization.ts';

export interface LoraOptions extends TargetOptions {
  /** Default 8. */
  readonly rank?: number;
  /** Numerator of the scale alpha/rank, default 8. */
  readonly alpha?: number;
  /** Probability that an entry of the adapter's input is dropped in training, [0, 1). */
  readonly dropout?: number;
  /** How A and B start. `true`: A uniform, B zero. `false`: both random, no identity at the start. `pissa()`, `olora()` and others rewrite the base. */
  readonly init?: boolean | 'gaussian' | 'orthogonal' | 'pissa' | `pissa_niter_${number}` | 'olora' | Initializer;
  /** Scale alpha/sqrt(rank) (Kalajdzievski 2023). */
  readonly rslora?: boolean;
  /** A trained magnitude for each output row (Liu et al. 2024). */
  readonly dora?: boolean;
  /** Rank by path pattern: Python regular expressions matched at the end of the path, the first in order wins. */
  readonly rankPattern?: Readonly<Record<string, number>>;
  readonly alphaPattern?: Readonly<Record<string, number>>;
  /** A trained bias on B, added with the adapter's scale. */
  readonly loraBias?: boolean;
}

/** Every option with its value. */
export type LoraSettings = Required<
  Omit<LoraOptions, 'excludeModules' | 'layersToTransform' | 'layersPattern' | 'modulesToSave' | 'trainableTokens'>
> &
  TargetOptions;

/** Fills defaults and checks every field. @throws ConfigError that names the field, the value and the range */
export function loraSettings(options: LoraOptions = {}): LoraSettings {
  checkOptions('lora', options, [
    'rank',
    'alpha',
    'dropout',
    'init',
    'rslora',
    'dora',
    'rankPattern',
    'alphaPattern',
    'loraBias',
    ...targetNames,
  ]);
  const {
    rank = 8,
    alpha = 8,
    dropout = 0,
    init = true,
    rslora = false,
    dora = false,
    rankPattern = {},
    alphaPattern = {},
    loraBias = false,
  } = options;
  const { bias = 'none', ...rest } = options;
  checkCount('lora', 'rank', rank);
  checkAlpha('alpha', alpha);
  if (!(dropout >= 0 && dropout < 1)) throw outOfRange('lora', 'dropout', dropout, 'in [0, 1)');
  if (findInitializer(init) === undefined)
    throw outOfRange(
      'lora',
      'init',
      init,
      "true, false, 'gaussian', 'orthogonal', 'pissa', 'pissa_niter_16' (or another number), 'olora' or an initializer",
    );
  checkOneOf('lora', 'bias', bias, ['none', 'lora_only', 'all']);
  for (const [field, value] of Object.entries({ rslora, dora, loraBias })) checkFlag('lora', field, value);
  for (const [key, value] of Object.entries(rankPattern)) checkCount('lora', `rankPattern['${key}']`, value);
  for (const [key, value] of Object.entries(alphaPattern)) checkAlpha(`alphaPattern['${key}']`, value);
  return { ...rest, rank, alpha, dropout, init, rslora, dora, rankPattern, alphaPattern, bias, loraBias };
}

// PEFT takes an alpha of 0 without a word, and the adapter then never does anything.
function checkAlpha(field: string, value: number): void {
  if (!(Number.isFinite(value) && value !== 0)) throw outOfRange('lora', field, value, 'finite and not 0');
}

/** s of y = base(x) + s·(x·Aᵀ)·Bᵀ. */
export const loraScale = (alpha: number, rank: number, rslora: boolean): number => alpha / (rslora ? Math.sqrt(rank) : rank);
