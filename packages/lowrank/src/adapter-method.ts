import type { AdapterMethod, FileFields, Warning } from '@niwaki/engine';
import type { Parameter } from '@niwaki/tensor';
import type { AdapterSet, Model, Site } from '@niwaki/nn';
import type { TargetModules } from './targets.ts';

export type { AdapterMethod, Binding, FileFields, Restored, SharedTensors, StoredShapes } from '@niwaki/engine';

/** A set in PEFT form: what `adapt` and `loadAdapter` return and `saveAdapter` writes. */
export interface PeftSet extends AdapterSet {
  /** Another one after `swapAdapter`: the options that the values of now go with. */
  method: AdapterMethod;
  /** What a file says is targeted. */
  readonly targets: TargetModules;
  readonly fields: FileFields;
  readonly warnings: readonly Warning[];
  /** Base weights that go into the file too, by parameter name: PEFT stores those of adapted embeddings. */
  readonly alsoStored: ReadonlyMap<string, StoredBase>;
}

/** A parameter of the base, read when it is written. */
export interface StoredBase {
  readonly shape: readonly number[];
  values(): Promise<Float32Array>;
}

/** @param name of a site's weight: `lm_head.weight` */
export function baseOf(model: Model, name: string): StoredBase {
  const [site] = model.sites((candidate) => `${candidate.path}.weight` === name) as [Site];
  return {
    shape: site.weight!.shape,
    values: async () => {
      const dense = site.weight!.dense();
      try {
        return (await dense.data()) as Float32Array;
      } finally {
        dense.dispose();
      }
    },
  };
}

/** Every parameter a set brought along. */
export const ownedBy = (set: Pick<AdapterSet, 'sites' | 'replaced'>): Parameter[] => [
  ...new Set([...[...set.sites.values()].flatMap((adapter) => Object.values(adapter.parameters)), ...set.replaced.values()]),
];

export const isPeftSet = (set: AdapterSet): set is PeftSet => 'targets' in set && 'fields' in set;
