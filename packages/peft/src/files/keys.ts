import { FormatError } from '@niwaki/tensor';

/** What a tensor's name in an adapter file says. */
export type PeftKey =
  /** A tensor of the method at a module: `lora_A.weight` of `model.layers.0.self_attn.q_proj`. */
  | { readonly kind: 'slot'; readonly path: string; readonly slot: string }
  /** A whole parameter of the base, by its name there. */
  | { readonly kind: 'parameter'; readonly name: string };

const prefix = 'base_model.model.';

/** The name in a file: no adapter's name in it. */
export const slotKey = (path: string, slot: string): string => `${prefix}${path}.${slot}`;

/** @param wrapped whether the module also carries an adapter, which PEFT's name then shows */
export function parameterKey(name: string, { wrapped }: { wrapped: boolean }): string {
  const dot = name.lastIndexOf('.');
  return `${prefix}${name.slice(0, dot)}${wrapped ? '.base_layer' : ''}${name.slice(dot)}`;
}

/**
 * Reads a name in any of the spellings found in the wild: with or without `base_model.model.`, with an adapter's name
 * before the ending (`lora_A.default.weight`), from a compiled model (`_orig_mod.`), with `modules_to_save` spelled out.
 * @param slots the method's tensor names, such as `lora_A.weight`
 */
export function parseKey(key: string, slots: readonly string[]): PeftKey {
  const bare = key.replaceAll('_orig_mod.', '');
  const name = bare.startsWith(prefix) ? bare.slice(prefix.length) : bare;
  for (const slot of slots) {
    const match = slotPattern(slot).exec(name);
    if (match !== null) return { kind: 'slot', path: match[1]!, slot };
  }
  return {
    kind: 'parameter',
    name: name.replace(/\.(?:base_layer|modules_to_save(?:\.[^.]+)?|original_module)(?=\.(?:weight|bias)$)/, ''),
  };
}

const patterns = new Map<string, RegExp>();
function slotPattern(slot: string): RegExp {
  const known = patterns.get(slot);
  if (known !== undefined) return known;
  const ending = /\.(?:weight|bias)$/.exec(slot)?.[0];
  const head = slot.slice(0, slot.length - (ending?.length ?? 0)).replaceAll('.', '\\.');
  // Bare parameters got a `.weight` in some writers.
  const tail = ending === undefined ? '(?:\\.(?!weight$)[^.]+)?(?:\\.weight)?' : `(?:\\.[^.]+)?\\${ending}`;
  const pattern = new RegExp(`^(.+)\\.${head}${tail}$`);
  patterns.set(slot, pattern);
  return pattern;
}

export interface FileLayout {
  /** Tensor names by module path and slot. */
  readonly slots: ReadonlyMap<string, ReadonlyMap<string, string>>;
  /** Tensor names by parameter name. */
  readonly parameters: ReadonlyMap<string, string>;
}

/**
 * Sorts the names of a file by what they belong to.
 * @throws FormatError when two names mean one tensor: two adapters in a file, or one in two spellings
 */
export function layoutOf(names: readonly string[], slots: readonly string[]): FileLayout {
  const bySite = new Map<string, Map<string, string>>();
  const parameters = new Map<string, string>();
  for (const name of names) {
    const key = parseKey(name, slots);
    const [into, part] = key.kind === 'parameter' ? [parameters, key.name] : [bySite.get(key.path) ?? new Map<string, string>(), key.slot];
    const other = into.get(part);
    if (other !== undefined) {
      throw new FormatError(`'${other}' and '${name}' mean the same tensor`, {
        names: [other, name],
        help: 'The file holds two adapters, or one twice: split it.',
      });
    }
    into.set(part, name);
    if (key.kind === 'slot') bySite.set(key.path, into);
  }
  return { slots: bySite, parameters };
}
