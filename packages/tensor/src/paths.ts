import { NotFoundError } from './errors.ts';
import { editDistance, nearest } from './nearest.ts';

/**
 * Whether a pattern names a dotted path. A pattern matches the whole path or what follows one of its dots, as in PEFT:
 * `q_proj` and `self_attn.q_proj` both match `model.layers.0.self_attn.q_proj`. `*` stands for one segment or a part of
 * it, `**` for any number of segments (none too), and a leading `^` ties the pattern to the start of the path.
 * @example matchesPath('layers.*.mlp.**', 'model.layers.3.mlp.up_proj') // true
 */
export const matchesPath = (pattern: string, path: string): boolean => pathRegExp(pattern).test(path);

const compiled = new Map<string, RegExp>();

function pathRegExp(pattern: string): RegExp {
  const known = compiled.get(pattern);
  if (known !== undefined) return known;
  const anchored = pattern.startsWith('^');
  const segments = (anchored ? pattern.slice(1) : pattern).split('.');
  let body = '';
  for (const [i, segment] of segments.entries()) {
    const last = i === segments.length - 1;
    // `**` carries its own dots, so that it can stand for nothing: `a.**.b` matches `a.b`, and `a.**` matches `a`.
    if (segment === '**') body = last ? `${body.replace(/\\\.$/, '')}${body === '' ? '.+' : '(?:\\..+)?'}` : `${body}(?:[^.]+\\.)*`;
    else body += segment.split('*').map(escaped).join('[^.]*') + (last ? '' : '\\.');
  }
  const expression = new RegExp(`^${anchored ? '' : '(?:.*\\.)?'}${body}$`);
  if (compiled.size > 1000) compiled.clear();
  compiled.set(pattern, expression);
  return expression;
}

const escaped = (text: string): string => text.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');

export interface MatchOptions {
  /** Names that stand for a rule instead of a pattern, such as `all-linear`. */
  readonly aliases?: Readonly<Record<string, (path: string) => boolean>>;
  /** What the paths are, for the error: "site", "parameter". */
  readonly what?: string;
  /** Patterns that match nothing are passed over as long as another one matches, as PEFT does. */
  readonly allowMissing?: boolean;
}

/**
 * The paths named by at least one pattern, in the order of `paths`. A pattern that matches nothing throws NotFoundError
 * with the nearest names: a misspelled site would otherwise go untouched in silence.
 */
export function matchPaths(patterns: string | readonly string[], paths: Iterable<string>, options: MatchOptions = {}): string[] {
  const { aliases = {}, what = 'path', allowMissing = false } = options;
  const list = typeof patterns === 'string' ? [patterns] : patterns;
  const all = [...paths];
  const chosen = new Set<string>();
  const missing: string[] = [];
  for (const pattern of list) {
    const matches = Object.hasOwn(aliases, pattern) ? aliases[pattern]! : (path: string) => matchesPath(pattern, path);
    const found = all.filter(matches);
    if (found.length === 0) missing.push(pattern);
    for (const path of found) chosen.add(path);
  }
  if (chosen.size === 0 || (missing.length > 0 && !allowMissing)) throw notFound(missing, all, what, Object.keys(aliases));
  return all.filter((path) => chosen.has(path));
}

function notFound(missing: readonly string[], paths: readonly string[], what: string, aliases: readonly string[]): NotFoundError {
  if (missing.length === 0) return new NotFoundError(`no pattern was given, so no ${what} matches`, { help: 'Name at least one.' });
  const near = missing.flatMap((pattern) => nearest(pattern, [...paths.map(withoutNumbers), ...aliases], { distance: tailDistance }));
  const names = [...new Set(near)].slice(0, 3 * missing.length);
  return new NotFoundError(`no ${what} matches ${missing.map((pattern) => `'${pattern}'`).join(', ')}`, {
    patterns: missing,
    nearest: names,
    help: names.length === 0 ? `There is no ${what} at all.` : `Nearest names: ${names.join(', ')}.`,
  });
}

/** Layers differ by a number only: one name with `*` speaks for all of them, and is a pattern that works. */
const withoutNumbers = (path: string): string => path.replace(/(^|\.)\d+(?=\.|$)/g, '$1*');

/** Compares a pattern with as many trailing segments of the path as it has itself. */
function tailDistance(pattern: string, path: string): number {
  const segments = pattern
    .replace(/^\^/, '')
    .replace(/^\*\*\./, '')
    .split('.');
  return editDistance(segments.join('.'), path.split('.').slice(-segments.length).join('.'));
}
