import { FormatError, type Parameter } from '@niwaki/tensor';
import {
  checkActivationGrid,
  onScaledChannels,
  tensorQuantizer,
  tokenQuantizer,
  type ActivationQuantizer,
  type TokenGrid,
} from '@niwaki/weights';
import type { ModelParts } from './families.ts';
import type { Model, Site } from './graph.ts';
import { ownList, sitesOf, withOwnList, type HfConfig } from './own-config.ts';

// No published form of config.json holds what is rounded where, per operand and beside weights of any format. So it is an
// own field, `niwaki.activations`: a list of { sites, bits, symmetric, per, outlierThreshold?, factors? }. What a quantizer stores
// are tensors under the names of its site: `input_scale` and `input_zero_point`, as compressed-tensors calls them, and
// `input_factors`. Other readers load the model without them, with activations in floats.

interface Entry extends TokenGrid {
  readonly per: 'token' | 'tensor';
  readonly factors?: boolean;
}

const entryOf = ({ bits, symmetric, per, outlierThreshold, parts }: ActivationQuantizer): Entry => ({
  bits,
  symmetric,
  per,
  ...(outlierThreshold !== undefined && { outlierThreshold }),
  ...(parts['input_factors'] !== undefined && { factors: true }),
});

/** A config that says what is rounded now, whatever it said when it was read. */
export const withActivations = (config: HfConfig, places: readonly Site[]): HfConfig =>
  withOwnList(
    config,
    'activations',
    places.flatMap(({ path, input }) => (input === undefined ? [] : [[path, entryOf(input)] as const])),
  );

/**
 * Puts on what a config says under `niwaki.activations`.
 * @throws FormatError for a field that is not as it must be; NotFoundError for a site or a tensor that is not there
 */
export async function restoreActivations(model: Model, config: HfConfig, parts: Pick<ModelParts, 'vector'>): Promise<void> {
  for (const [i, entry] of ownList(config, 'activations').entries()) {
    const { per, factors, sites, ...grid } = checkedEntry(entry, `niwaki.activations[${i}]`);
    for (const path of sites) {
      const number = async (name: string): Promise<number> => (await vectorAt(`${path}.${name}`, [1], parts))[0]!;
      const base =
        per === 'token'
          ? tokenQuantizer(grid)
          : tensorQuantizer(
              path,
              { scale: await number('input_scale'), ...(!grid.symmetric && { zero: await number('input_zero_point') }) },
              grid,
            );
      model.replaceInput(path, base);
      if (!factors) continue;
      const width = model.sites(path, { points: ['linear', 'conv', 'head'] })[0]!.weight!.shape[1];
      model.replaceInput(path, onScaledChannels(path, base, await vectorAt(`${path}.input_factors`, [width], parts)), { keep: true });
    }
  }
}

async function vectorAt(path: string, shape: readonly number[], { vector }: Pick<ModelParts, 'vector'>): Promise<Float32Array> {
  const found: Parameter | undefined = await vector(path, shape, 'scale');
  if (found === undefined)
    throw new FormatError(`the config rounds activations with '${path}', and there is no such tensor`, { tensor: path });
  const values = ((await found.read().data()) as Float32Array).slice();
  found.dispose();
  if (found.shape.join() === shape.join()) return values;
  throw new FormatError(`'${path}' is [${found.shape}], expected [${shape}]`, { tensor: path, given: found.shape, expected: shape });
}

function checkedEntry(entry: unknown, field: string): Entry & { readonly sites: readonly string[] } {
  const { sites, bits, symmetric, per, outlierThreshold, factors = false } = Object(entry) as Partial<Entry> & { readonly sites?: unknown };
  const fail = (problem: string): never => {
    throw new FormatError(`${field} of the config: ${problem}`, { field, value: entry });
  };
  if (per !== 'token' && per !== 'tensor') return fail(`per must be 'token' or 'tensor', got ${JSON.stringify(per)}`);
  if (typeof factors !== 'boolean') return fail(`factors must be true or false, got ${JSON.stringify(factors)}`);
  if (outlierThreshold !== undefined && per !== 'token') return fail("outlierThreshold goes with per: 'token'");
  checkActivationGrid(field, { bits: bits!, symmetric: symmetric!, ...(outlierThreshold !== undefined && { outlierThreshold }) });
  return {
    sites: sitesOf({ sites }, field),
    bits: bits!,
    symmetric: symmetric!,
    per,
    ...(outlierThreshold !== undefined && { outlierThreshold }),
    factors,
  };
}
