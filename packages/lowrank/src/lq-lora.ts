import { checkCount, checkOptions, ConfigError, NiwakiError, outOfRange, ShapeError, type Json, type Tensor2D } from '@niwaki/tensor';
import type { Method } from '@niwaki/engine';
import type { Weight } from '@niwaki/weights';
import type { Model, Site } from '@niwaki/nn';
import { allocate, type Choice } from './allocate.ts';
import { decompose, free } from './decompose.ts';
import type { InitContext, Initializer } from './initialization.ts';
import { checkQuantizer } from './requantize.ts';

export interface LqLoraOptions {
  /** What matrices may be stored as: methods of quantization. One that does not fit a matrix is left out there. */
  readonly quantizers: readonly Method[];
  /** Budget in bits an entry of the adapted matrices, scales and zeros included; needed to choose among several. */
  readonly bits?: number;
  /** Rounds a matrix at most, default 100; it ends where a round gains less than a thousandth of the error. */
  readonly iterations?: number;
  /** How much an error of each entry matters, [out, in] by path, such as the squared gradients of examples (a Fisher diagonal). */
  readonly importance?: ReadonlyMap<string, Tensor2D>;
  /** Told what was chosen, before the first site is made. */
  readonly onAllocation?: (report: LqLoraAllocation) => void;
}

export interface LqLoraAllocation {
  /** Bits an entry over all sites. */
  readonly bits: number;
  /** Whether no other choice is better. */
  readonly optimal: boolean;
  readonly sites: readonly {
    readonly path: string;
    readonly quantizer: { readonly kind: string; readonly options: { readonly [name: string]: Json } };
    readonly bits: number;
    /** ‖√F ∘ (W - s·B·A - Q)‖. */
    readonly error: number;
  }[];
}

/**
 * Splits each matrix into codes and a pair that start as W ≈ Q + s·B·A (LQ-LoRA, Guo et al. 2023), with the format of each
 * matrix chosen under one budget for all: every matrix is decomposed with every quantizer, and the least sum of squared
 * errors within the bits is taken. The base must be float and becomes Q for good: deleting the adapter leaves Q, and the
 * adapter's file is for Q, as a fingerprint in the file tells. `saveQuantized` writes Q where one quantizer was given; a
 * mixture has no file format, and is made again by the same call on the float model.
 * Time: sites × quantizers × rounds of a sketched decomposition. Memory: the codes beside W until the whole model is done.
 * @throws ConfigError without a quantizer, for several without a budget, and for a budget below the least
 * @example lora({ rank: 16, init: lqLora({ quantizers: [rtn({ bits: 2 }), rtn({ bits: 3 }), nf4()], bits: 3.5 }) })
 */
export function lqLora(options: LqLoraOptions): Initializer {
  checkOptions('lq-lora', options, ['quantizers', 'bits', 'iterations', 'importance', 'onAllocation']);
  const { quantizers, bits, iterations = 100, importance, onAllocation } = options;
  for (const quantizer of quantizers) checkQuantizer('lq-lora', quantizer);
  if (quantizers.length === 0 || (quantizers.length > 1 && bits === undefined))
    throw new ConfigError(`lq-lora: ${quantizers.length} quantizers ${bits === undefined ? 'without a budget of bits' : ''}`, {
      quantizers: quantizers.length,
      help: 'Give one quantizer, or several and `bits`.',
    });
  if (bits !== undefined && !(bits > 0 && bits < Infinity)) throw outOfRange('lq-lora', 'bits', bits, 'a finite number above 0');
  checkCount('lq-lora', 'iterations', iterations);
  const run = (context: InitContext, quantizer: Method): ReturnType<typeof decompose> =>
    decompose(context, { quantizer, iterations, importance: importance?.get(context.site.path) });
  return {
    name: 'lq-lora',
    options: { quantizers: quantizers.map((quantizer) => quantizer.toJSON()), iterations, ...(bits !== undefined && { bits }) },
    rewrites: 'quantized',
    check: ({ site, model, out, in: width }) => {
      checkImportance(site, importance, [out, width]);
      fitting(quantizers, site, model);
    },
    ...(bits !== undefined && { plan: async (contexts, model) => planned(contexts, { quantizers, bits, model, run, onAllocation }) }),
    linear: async (context) => {
      const { errors: _, ...parts } = await run(context, (context.planned as Method | undefined) ?? quantizers[0]!);
      return parts;
    },
  };
}

function checkImportance({ path }: Site, importance: LqLoraOptions['importance'], shape: readonly number[]): void {
  const own = importance?.get(path);
  if (importance === undefined || own?.shape.join() === shape.join()) return;
  throw new ShapeError(`the importance of '${path}' must be [${shape}], got ${own === undefined ? 'none' : `[${own.shape}]`}`, {
    path,
    expected: shape,
    given: own?.shape,
  });
}

/** The quantizers that serve a site; the first one's reason where none does. */
function fitting(quantizers: readonly Method[], site: Site, model: Model): Method[] {
  let reason: unknown;
  const fit = quantizers.filter((quantizer) => {
    try {
      quantizer.validate?.(site, model);
      return true;
    } catch (error) {
      if (!NiwakiError.isInstance(error)) throw error;
      reason ??= error;
      return false;
    }
  });
  if (fit.length === 0) throw reason;
  return fit;
}

interface Planning {
  readonly quantizers: readonly Method[];
  readonly onAllocation: LqLoraOptions['onAllocation'];
  readonly bits: number;
  readonly model: Model;
  run(context: InitContext, quantizer: Method): ReturnType<typeof decompose>;
}

async function planned(
  contexts: readonly InitContext[],
  { quantizers, bits, model, run, onAllocation }: Planning,
): Promise<ReadonlyMap<string, Method>> {
  const candidates: { readonly quantizer: Method; readonly choice: Choice }[][] = [];
  let entries = 0;
  for (const context of contexts) {
    entries += context.out * context.in;
    const own = [];
    for (const quantizer of fitting(quantizers, context.site, model)) {
      const made = await run(context, quantizer);
      own.push({ quantizer, choice: { cost: made.errors.at(-1)! ** 2, size: storedBits(made.base) } });
      free(made);
    }
    candidates.push(own);
  }
  const { chosen, size, optimal } = within(candidates, bits, entries);
  const picked = contexts.map((context, i) => ({ context, ...candidates[i]![chosen[i]!]! }));
  onAllocation?.({
    bits: size / entries,
    optimal,
    sites: picked.map(({ context, quantizer, choice }) => ({
      path: context.site.path,
      quantizer: quantizer.toJSON(),
      bits: choice.size / (context.out * context.in),
      error: Math.sqrt(choice.cost),
    })),
  });
  return new Map(picked.map(({ context, quantizer }) => [context.site.path, quantizer]));
}

function within(
  candidates: readonly (readonly { readonly choice: Choice }[])[],
  bits: number,
  entries: number,
): ReturnType<typeof allocate> {
  const choices = candidates.map((own) => own.map(({ choice }) => choice));
  const least = choices.reduce((total, own) => total + Math.min(...own.map(({ size }) => size)), 0) / entries;
  if (least > bits * (1 + 1e-12))
    throw new ConfigError(`lq-lora: a budget of ${bits} bits an entry, and the smallest formats take ${least}`, {
      bits,
      least,
      help: `Give at least ${least} bits, or a quantizer of fewer.`,
    });
  return allocate(choices, bits * entries);
}

/** What a matrix takes, without the tables of its format, which do not grow with it. */
const storedBits = ({ parts }: Weight): number =>
  8 * Object.values(parts).reduce((sum, part) => sum + (part.role === 'statistic' ? 0 : part.bytes()), 0);
