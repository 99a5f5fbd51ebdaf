import type { Tensor2D } from '@niwaki/tensor';
import type { Weight } from '@niwaki/weights';
import type { Model, Site } from '@niwaki/nn';

/** Sites whose linear maps read one tensor, in the order given. */
export interface InputGroup {
  readonly id: string;
  readonly sites: readonly Site[];
}

/**
 * Sites by distinct input. Where an adapter sits at a site, it may change what reaches the matrix: that site is its own
 * group. So is one that rounds its input in a step of its own; those that round rows the same way stay together.
 */
export function inputGroups(sites: readonly Site[], model: Model): readonly InputGroup[] {
  const groups = new Map<string, Site[]>();
  for (const site of sites) {
    const adapted = [...model.adapters.values()].some((set) => set.sites.has(site.path));
    const id = adapted ? `${site.inputId}@${site.path}` : `${site.inputId}${roundingOf(site)}`;
    groups.set(id, [...(groups.get(id) ?? []), site]);
  }
  return [...groups].map(([id, members]) => ({ id, sites: members }));
}

function roundingOf({ path, input }: Site): string {
  if (input === undefined) return '';
  return Object.keys(input.parts).length > 0 ? `@${path}` : `#${input.bits}${input.symmetric ? '' : ' asymmetric'}`;
}

/**
 * Runs a stage while the first site of each group tells what its matrix is applied to. For the length of `run`, which is
 * synchronous, a weight that listens stands in for the stored one. With `leave`, the stage is left as soon as every
 * group was seen: what comes after needs no computing, and there is no result.
 */
export function watchInputs<T>(
  groups: readonly InputGroup[],
  { onInput, leave, run }: { readonly onInput: (group: InputGroup, x: Tensor2D) => void; readonly leave: boolean; readonly run: () => T },
): { readonly seen: ReadonlySet<string>; readonly result?: T } {
  const seen = new Set<string>();
  const left = new Error('internal: every input was seen');
  const stored = new Map<Site, Weight>();
  try {
    for (const group of groups) {
      const site = group.sites[0]!;
      const weight = site.weight!;
      stored.set(site, weight);
      site.weight = {
        ...weight,
        apply: (x, call) => {
          if (!seen.has(group.id)) onInput(group, x);
          seen.add(group.id);
          if (leave && seen.size === groups.length) throw left;
          return weight.apply(x, call);
        },
      };
    }
    return { seen, result: run() };
  } catch (error) {
    if (error !== left) throw error;
    return { seen };
  } finally {
    for (const [site, weight] of stored) site.weight = weight;
  }
}
