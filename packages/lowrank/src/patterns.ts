import { matchesSuffixPattern } from '@niwaki/tensor';
import type { Warn } from '@niwaki/peft';

/**
 * The value of the first key that matches the path, or the fallback. Keys are Python regular expressions matched at the
 * end of the path; `^` ties one to the start.
 */
export function valueFor(pattern: Readonly<Record<string, number>>, path: string, fallback: number): number {
  for (const [key, value] of Object.entries(pattern)) if (matchesSuffixPattern(key, path)) return value;
  return fallback;
}

/** Warns once, naming every key that matches none of the paths: such a key is a mistake that nothing else would show. */
export function warnUnused(field: string, pattern: Readonly<Record<string, number>>, paths: readonly string[], warn: Warn): void {
  const unused = Object.keys(pattern).filter((key) => !paths.some((path) => matchesSuffixPattern(key, path)));
  if (unused.length > 0) warn('unused-pattern', `${field} has keys that match no adapted module: ${unused.join(', ')}`, unused);
}
