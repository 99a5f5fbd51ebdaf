import { checkFlag, checkOptions, ConfigError, factorMoments, packBits, type FactoredMoments } from '@niwaki/tensor';
import { createBreath, defineMethod, inputGram, roundsFloats, type Method, type Window } from '@niwaki/engine';
import {
  affine,
  affineGroupSize,
  affineStep,
  expectFinite,
  isSymmetric,
  type AffineGrid,
  type AffineParts,
  type AffineStep,
  type Weight,
} from '@niwaki/weights';
import type { Site } from '@niwaki/nn';
import { checkIntegerSite, integerNames, integerOptions, type IntegerOptions } from './affine-options.ts';
import { compensatedRounding, usualDamping } from './compensated-rounding.ts';

export interface GptqOptions extends IntegerOptions {
  /** Added to the diagonal of the input's second moments, as a part of its mean; default 0.01. */
  readonly damping?: number;
  /**
   * Round the columns of the largest inputs first; default false. Better with few bits, and the weight then reorders the
   * columns of its input at every product.
   */
  readonly actOrder?: boolean;
  /**
   * Take the steps of all groups from the matrix as it was before any column was rounded; default false. With `actOrder`
   * the columns then stay where they are, and nothing is reordered at a product.
   */
  readonly staticGroups?: boolean;
  /** Take the inputs of each linear map with the maps before it in the block already rounded; default true. Slower: four passes a block for one. */
  readonly sequential?: boolean;
}

/**
 * GPTQ (Frantar et al. 2023, 2210.17323): rounds a matrix column by column and makes the columns that follow carry the
 * error, so that the outputs on the calibration data move least. What is stored is what `rtn` stores.
 * Memory: in² doubles twice, and 13 bytes an entry of the matrix, on the host; 4 · in² bytes on the device. Work: in³/3 +
 * out · in²/2 multiply-adds a matrix, on the host in double precision.
 * @throws ConfigError for options out of range or without calibration batches; NumericError for a matrix that is not finite
 * @example await quantize(model, gptq({ bits: 3 }), { calibrate: { batches } })
 */
export function gptq(options: GptqOptions = {}): Method {
  checkOptions('gptq', options, [...integerNames, 'damping', 'actOrder', 'staticGroups', 'sequential']);
  const { grid, ...named } = integerOptions('gptq', options);
  const { damping = usualDamping, actOrder = false, staticGroups = false, sequential = true } = options;
  if (!(damping > 0 && damping < 1)) throw new ConfigError(`gptq: damping must be between 0 and 1, got ${damping}`, { damping });
  for (const [field, value] of Object.entries({ actOrder, staticGroups, sequential })) checkFlag('gptq', field, value);
  const { bits, groupSize, mse } = named;

  const visit = async (window: Window): Promise<void> => {
    const breath = createBreath();
    const rounds = sequential ? window.groups.map((group) => [group]) : [window.groups];
    for (const groups of rounds) {
      const statistics = await window.collect(groups.flat(), { gram: inputGram() });
      for (const group of groups) {
        const { gram } = statistics.get(group[0]!)!;
        const moments = await factorMoments(await gram.data(), gram.shape[0], { damping, largestFirst: actOrder, breath });
        for (const site of group) {
          const size = affineGroupSize(groupSize, site.weight!.shape[1], site.path);
          window.replace(site, { weight: await rounded(site, moments, { bits, groupSize: size, grid, mse, staticGroups, breath }) });
        }
      }
    }
  };

  return defineMethod({
    kind: 'gptq',
    options: { ...named, damping, actOrder, staticGroups, sequential },
    traits: {
      ...roundsFloats,
      gives: ['encode', 'lookup'],
      // Columns that follow carry the error of those before: entries that were 0 too.
      forbids: ['zeros'],
      help: {
        ...roundsFloats.help,
        zeros: 'Quantize with rtn(), nf4() or awq(), which leave a 0 at 0, or quantize first and prune into a mask.',
      },
    },
    makes: 'weight',
    walk: { advance: 'current' },
    validate: (site) => checkIntegerSite(site, groupSize),
    visit,
    make: async ({ path }) => {
      throw new ConfigError(`gptq rounds a block at a time and cannot make '${path}' alone`, { path });
    },
  });
}

interface RoundOptions {
  readonly bits: 2 | 3 | 4 | 8;
  readonly groupSize: number;
  readonly grid: AffineGrid;
  readonly mse: boolean;
  readonly staticGroups: boolean;
  readonly breath: () => Promise<void>;
}

async function rounded(site: Site, { factor, dead, order }: FactoredMoments, options: RoundOptions): Promise<Weight> {
  const { bits, groupSize, grid, mse, staticGroups } = options;
  const { path } = site;
  const shape = site.weight!.shape;
  const [out, n] = shape;
  const dense = site.weight!.dense();
  const stored = ((await dense.data()) as Float32Array).slice();
  dense.dispose();
  expectFinite(stored, `${path}.weight`, n);
  const stepsNow = (): AffineStep[] =>
    Array.from({ length: stored.length / groupSize }, (_, g) =>
      affineStep(stored, [g * groupSize, (g + 1) * groupSize], { bits, grid, mse }),
    );
  // A step of the whole row is that of the matrix as it was, before columns without input go (as in the reference).
  const whole = groupSize === n ? stepsNow() : undefined;
  for (const k of dead) for (let row = 0; row < out; row++) stored[row * n + k] = 0;
  const fixed = whole ?? (staticGroups ? stepsNow() : undefined);
  const w = new Float64Array(out * n);
  for (let row = 0; row < out; row++) for (let k = 0; k < n; k++) w[row * n + k] = stored[row * n + (order?.[k] ?? k)]!;
  const groupOf = order?.map((k) => Math.floor(k / groupSize));
  const { codes, steps } = await compensatedRounding(w, factor, {
    shape,
    ...options,
    ...(fixed && { steps: fixed, ...(groupOf && { groupOf }) }),
  });
  // Steps that belong to the columns, and not to the order they are rounded in, let the columns stay where they are.
  const sorted = order !== undefined && fixed !== undefined ? inOrder(codes, order) : codes;
  const parts: AffineParts = {
    codes: packBits(sorted, { bits }),
    scales: Float32Array.from(steps, ({ scale }) => scale),
    ...(isSymmetric(grid) ? {} : { zeros: Uint8Array.from(steps, ({ zero }) => zero) }),
    ...(order && fixed === undefined && { order }),
  };
  return affine(path, shape, parts, { bits, groupSize, grid });
}

/** Codes of a matrix whose column k is column order[k], with the columns back at their places. */
function inOrder(codes: Uint8Array, order: Int32Array): Uint8Array {
  const n = order.length;
  const sorted = new Uint8Array(codes.length);
  for (let from = 0; from < codes.length; from += n) for (let k = 0; k < n; k++) sorted[from + order[k]!] = codes[from + k]!;
  return sorted;
}
