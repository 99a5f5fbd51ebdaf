/** Edits (insert, delete, replace, swap of neighbors) that turn one string into another: optimal string alignment. */
export function editDistance(a: string, b: string): number {
  let before: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const cost = a[i - 1] === b[j - 1] ? 0 : 1;
      let best = Math.min(last[j]! + 1, row[j - 1]! + 1, last[j - 1]! + cost);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) best = Math.min(best, before[j - 2]! + 1);
      row.push(best);
    }
    [before, last] = [last, row];
  }
  return last[b.length]!;
}

/** The names closest to a wrong one, closest first: what an error offers. `distance` may compare more than the whole name. */
export function nearest(
  wrong: string,
  names: Iterable<string>,
  { count = 3, distance = editDistance }: { count?: number; distance?: (wrong: string, name: string) => number } = {},
): string[] {
  const ranked = [...new Set(names)].map((name) => ({ name, distance: distance(wrong, name) }));
  ranked.sort((a, b) => a.distance - b.distance || (a.name < b.name ? -1 : 1));
  return ranked.slice(0, count).map(({ name }) => name);
}
