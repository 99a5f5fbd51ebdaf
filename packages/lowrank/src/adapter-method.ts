import type { Draw, Parameter, Tensor } from '@niwaki/tensor';
import type { Method } from '@niwaki/engine';
import type { Adapter, AdapterSet, Model, Site } from '@niwaki/nn';
import type { Weight } from '@niwaki/weights';
import type { TargetOptions } from './lora-options.ts';
import type { TargetModules } from './targets.ts';
import type { Warn, Warning } from './warning.ts';

/** What a method must know of the set it makes adapters for. */
export interface Binding {
  readonly name: string;
  readonly draw: Draw;
  /** The bias this set trains in place of the site's. */
  biasOf(site: Site): Parameter | undefined;
  readonly warn: Warn;
}

/** Shapes by slot; 'rank' stands for a side that the tensors decide. */
export type StoredShapes = Readonly<Record<string, readonly (number | 'rank')[]>>;

export interface Restored {
  readonly adapter: Adapter;
  readonly weight?: Weight;
}

/** A method whose adapters live in PEFT files. */
export interface AdapterMethod extends Method {
  /** `peft_type` of the files. */
  readonly peftType: string;
  readonly targeting: TargetOptions;
  /** PEFT's names of the tensors an adapter may store, such as `lora_A.weight`. */
  readonly slots: readonly string[];
  /** The tensors a site's adapter does store. */
  stored(site: Site, model: Model): StoredShapes;
  /** The rank that the options give a site; undefined for methods without one. */
  rankAt(site: Site): number | undefined;
  /** Tensors that all its sites share, in files under their own names with no module before them. */
  readonly shared?: SharedTensors;
  /** Fields of its files that the model decides. */
  fileFields?(model: Model): FileFields;
  /** The same method, making the adapters of one set. */
  bind(binding: Binding): Method;
  /**
   * An adapter from stored tensors by PEFT parameter name; it takes them over. With the weight that the site must hold,
   * where the file was made for a rewritten base.
   */
  restore(site: Site, tensors: ReadonlyMap<string, Tensor>, binding: Binding): Promise<Restored>;
  /** What adapters of this method make of the base, if anything; then no other set may share their sites. */
  readonly rewrites?: 'residual' | 'quantized';
  /** Whether the name in a file is enough to rewrite the base again. */
  readonly repeatable?: boolean;
}

export interface SharedTensors {
  /** Such as `prompt_embeddings`. */
  readonly slots: readonly string[];
  stored(sites: readonly Site[], model: Model): StoredShapes;
  /**
   * The adapters of all sites, by path, from stored tensors by slot; they take them over.
   * @param ofSite what is each site's own, by path and slot
   */
  restore(
    sites: readonly Site[],
    tensors: ReadonlyMap<string, Tensor>,
    binding: Binding,
    ofSite: ReadonlyMap<string, ReadonlyMap<string, Tensor>>,
  ): ReadonlyMap<string, Adapter>;
}

/** Fields of adapter_config.json that say nothing about the method and are kept for whoever reads the file next. */
export type FileFields = Readonly<Record<string, unknown>>;

/** A set in PEFT form: what `adapt` and `loadAdapter` return and `saveAdapter` writes. */
export interface PeftSet extends AdapterSet {
  readonly method: AdapterMethod;
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
