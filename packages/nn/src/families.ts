import { ConfigError, NotFoundError, ShapeError, type Parameter, type Role } from '@niwaki/tensor';
import { disposeWeight, type Weight } from '@niwaki/weights';
import { decoderFamily } from './decoder/load.ts';
import type { Model } from './graph.ts';
import type { HfConfig } from './own-config.ts';
import { restoreActivations } from './stored-activations.ts';
import { restoreSparsity } from './stored-sparsity.ts';

export type { HfConfig } from './own-config.ts';

/**
 * Where a model's tensors come from. Paths are Hugging Face's with the base prefix (`model.`), whatever the file spells;
 * they become the parameters' paths. Undefined: the tensor is not there.
 */
export interface ModelParts {
  weight(path: string, shape: readonly [out: number, in_: number], role: Role): Promise<Weight | undefined>;
  vector(path: string, shape: readonly number[], role: Role): Promise<Parameter | undefined>;
}

export interface ModelOptions extends ModelParts {
  /** config.json, in old or new spelling. */
  readonly config: HfConfig;
  /** Name or path it comes from. */
  readonly source: string;
  /** Told what is odd but not wrong: two heads where one was expected. */
  readonly warn?: (message: string) => void;
  /** More families by `model_type`, asked before the known ones. */
  readonly families?: ReadonlyMap<string, Family>;
}

/** What a family takes: asks for tensors through a loader that notes what is missing. */
export interface FamilyInput {
  readonly config: HfConfig;
  readonly source: string;
  readonly warn: (message: string) => void;
  readonly ask: Ask;
}

export interface Ask {
  /** `fields` names the config fields behind each side, for the error. What is missing is noted. */
  weight(path: string, shape: readonly [number, number], role: Role, fields: string): Promise<Weight>;
  vector(path: string, shape: readonly number[], role: Role, fields: string): Promise<Parameter>;
  /** For tensors that a file may leave out. */
  optional(path: string, shape: readonly [number, number], role: Role, fields: string): Promise<Weight | undefined>;
  /** Throws when anything was missing; called before the model is put together. */
  settle(): void;
}

/** Builds a model of one `model_type`. */
export type Family = (input: FamilyInput) => Promise<Model>;

/** Known families by Hugging Face's `model_type`. */
export const families: ReadonlyMap<string, Family> = new Map<string, Family>([
  ['llama', decoderFamily('llama')],
  ['mistral', decoderFamily('mistral')],
  ['qwen2', decoderFamily('qwen2')],
  ['qwen3', decoderFamily('qwen3')],
]);

/**
 * Puts a model together from its config and its tensors. Whatever was loaded is disposed when it fails.
 * @throws ConfigError for an unknown family or a config that disagrees with itself; NotFoundError that lists every missing
 *   tensor; ShapeError that names the config fields a tensor disagrees with
 */
export async function createModel(options: ModelOptions): Promise<Model> {
  const { config, source, warn = () => {} } = options;
  const type = config['model_type'];
  const known = new Map([...families, ...(options.families ?? [])]);
  const family = typeof type === 'string' ? known.get(type) : undefined;
  if (family === undefined) {
    throw new ConfigError(`model_type ${JSON.stringify(type)} is not a family we know: ${[...known.keys()].join(', ')}`, {
      given: type,
      known: [...known.keys()],
    });
  }
  const held: (Weight | Parameter)[] = [];
  try {
    const model = await family({ config, source, warn, ask: askOf(options, held) });
    try {
      await restoreSparsity(model, config);
      await restoreActivations(model, config, options);
    } catch (error) {
      model.dispose();
      throw error;
    }
    return model;
  } catch (error) {
    for (const one of held)
      if ('parts' in one) disposeWeight(one);
      else one.dispose();
    throw error;
  }
}

function askOf(parts: ModelParts, held: (Weight | Parameter)[]): Ask {
  const missing: string[] = [];
  const checked = <T extends Weight | Parameter>(
    path: string,
    found: T | undefined,
    shape: readonly number[],
    fields: string,
  ): T | undefined => {
    if (found === undefined) return undefined;
    held.push(found);
    if (found.shape.join() === shape.join()) return found;
    throw new ShapeError(`'${path}' is [${found.shape}], the config says [${shape}] = [${fields}]`, {
      path,
      given: found.shape,
      expected: shape,
      fields,
    });
  };
  const needed = <T>(path: string, found: T | undefined): T => {
    if (found === undefined) missing.push(path);
    // Asking goes on, so that the error lists everything; `settle` throws before the hole is read.
    return found as T;
  };
  const optional: Ask['optional'] = async (path, shape, role, fields) =>
    checked(path, await parts.weight(path, shape, role), shape, fields);
  return {
    optional,
    weight: async (path, shape, role, fields) => needed(path, await optional(path, shape, role, fields)),
    vector: async (path, shape, role, fields) => needed(path, checked(path, await parts.vector(path, shape, role), shape, fields)),
    settle: () => {
      if (missing.length === 0) return;
      throw new NotFoundError(
        `${missing.length} tensors are missing: ${missing.slice(0, 8).join(', ')}${missing.length > 8 ? ', …' : ''}`,
        { missing },
      );
    },
  };
}
