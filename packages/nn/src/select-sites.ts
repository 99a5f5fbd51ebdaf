import { matchPaths, NotFoundError } from '@niwaki/tensor';
import type { Selector, Site } from './graph.ts';

/** A name for every linear map but the output head, as in PEFT. */
const isLinear = (site: Site): boolean => site.point === 'linear';

/** Sites by path, pattern, alias or predicate, in the model's order. Throws NotFoundError where nothing matches. */
export function selectSites(sites: readonly Site[], at: Selector): readonly Site[] {
  if (typeof at === 'function') {
    const found = sites.filter((site) => at(site));
    if (found.length > 0) return found;
    throw new NotFoundError('the predicate chooses no site', { sites: sites.length });
  }
  const linear = new Set(sites.filter(isLinear).map((site) => site.path));
  const paths = new Set(
    matchPaths(
      at,
      sites.map((site) => site.path),
      { what: 'site', aliases: { 'all-linear': (path) => linear.has(path) } },
    ),
  );
  return sites.filter((site) => paths.has(site.path));
}

/** The entry of one whole path, never of a pattern; the error lists near misses. */
export function exactly<T>(path: string, entries: ReadonlyMap<string, T>, what: string): T {
  const found = entries.get(path);
  if (found !== undefined) return found;
  const matches = matchPaths(`^${path}`, entries.keys(), { what });
  throw new NotFoundError(`no ${what} is called '${path}'; as a pattern it stands for ${matches.length}`, { path, matches });
}
