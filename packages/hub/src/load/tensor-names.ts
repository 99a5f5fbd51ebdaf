import { NotFoundError } from '@niwaki/tensor';
import type { TensorSource } from '@niwaki/weights';

const basePrefixes = ['model.', 'transformer.', 'bert.', 'roberta.', 'vit.', 'decoder.'];

/** Tensors under the names a model asks for, and which of the file's names were asked for. */
export interface NamedTensors extends TensorSource {
  has(name: string): boolean;
  /** Every name it answers to. */
  known(): ReadonlySet<string>;
  /** Names of the file that nobody read. */
  unread(): string[];
}

/**
 * Answers to the spellings that files use for one name: with or without the prefix of the base model, and with `gamma`
 * and `beta` where norms once said so. A name that is in the file as asked is always that one.
 */
export function namedTensors(source: TensorSource): NamedTensors {
  const stored = source.names();
  const present: ReadonlySet<string> = new Set(stored);
  const read = new Set<string>();
  let spelled: ReadonlyMap<string, string> | undefined; // built at the first miss: most files need none of it
  let known: ReadonlySet<string> = present;
  const find = (name: string): string | undefined => {
    if (present.has(name)) return name;
    if (spelled === undefined) {
      spelled = spellings(stored);
      known = new Set([...stored, ...spelled.keys()]);
    }
    return spelled.get(name);
  };
  const found = (name: string): string => {
    const own = find(name);
    if (own === undefined) throw new NotFoundError(`no tensor '${name}'`, { tensor: name });
    read.add(own);
    return own;
  };
  return {
    names: () => [...known],
    known: () => known,
    has: (name) => find(name) !== undefined,
    info: (name) => source.info(found(name)),
    read: (name, range) => source.read(found(name), range),
    unread: () => stored.filter((name) => !read.has(name) && !isIgnored(name)),
  };
}

/** Other names of each tensor → its name in the file. */
function spellings(stored: readonly string[]): ReadonlyMap<string, string> {
  const map = new Map<string, string>();
  for (const own of stored) {
    const modern = own.replace(/(norm\w*)\.gamma$/i, '$1.weight').replace(/(norm\w*)\.beta$/i, '$1.bias');
    const bare = basePrefixes.filter((prefix) => modern.startsWith(prefix)).map((prefix) => modern.slice(prefix.length));
    for (const name of [modern, ...bare, ...basePrefixes.map((prefix) => prefix + modern)]) {
      if (!map.has(name)) map.set(name, own);
    }
  }
  return map;
}

/** Buffers that checkpoints carry along and nobody reads. */
const isIgnored = (name: string): boolean =>
  /(^|\.)(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias|position_ids|num_batches_tracked)$/.test(name);
