import { FormatError } from '@niwaki/tensor';

/** config.json, in old or new spelling. */
export type HfConfig = Readonly<Record<string, unknown>>;

// What no published form of config.json says stands under `niwaki`, as lists of { sites, … }. Other readers go past it.

/** The list under `niwaki.<field>`; empty where there is none. @throws FormatError for what is no list */
export function ownList({ niwaki }: HfConfig, field: string): readonly unknown[] {
  const listed = (niwaki as { readonly [field: string]: unknown } | null | undefined)?.[field];
  if (listed === undefined) return [];
  if (Array.isArray(listed)) return listed;
  throw new FormatError(`niwaki.${field} of the config is no list`, { field: `niwaki.${field}` });
}

/** A config that says under `niwaki.<field>` what holds now for which sites, whatever it said when it was read. */
export function withOwnList<T extends object>(
  config: HfConfig,
  field: string,
  now: readonly (readonly [path: string, entry: T])[],
): HfConfig {
  const { niwaki, ...rest } = config;
  if (now.length === 0 && niwaki === undefined) return config;
  const lists = new Map<string, string[]>();
  for (const [path, entry] of now) {
    const key = JSON.stringify(entry);
    lists.set(key, [...(lists.get(key) ?? []), path]);
  }
  const list = [...lists].map(([key, sites]) => ({ sites, ...(JSON.parse(key) as T) }));
  const { [field]: _, ...others } = (niwaki ?? {}) as Record<string, unknown>;
  const own = { ...others, ...(list.length > 0 && { [field]: list }) };
  return Object.keys(own).length > 0 ? { ...rest, niwaki: own } : rest;
}

/** The paths of an entry. @throws FormatError naming the field */
export function sitesOf({ sites }: { readonly sites?: unknown }, field: string): readonly string[] {
  if (Array.isArray(sites) && sites.every((path): path is string => typeof path === 'string')) return sites;
  throw new FormatError(`${field} of the config: sites must be a list of paths`, { field, value: sites });
}
