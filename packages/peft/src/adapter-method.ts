import {
  createDraw,
  denseParameter,
  nounWith,
  type Draw,
  type Noun,
  type Parameter,
  type Role,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import type { Adapter, AdapterSet, Model, Site } from '@niwaki/nn';
import type { Weight } from '@niwaki/weights';
import type { Method, Participant } from '@niwaki/engine';
import type { AdapterFile } from './adapter-file.ts';
import type { TargetModules } from './targets.ts';

/** What every adapter method may say about its targets and about what trains beside them, as in PEFT. */
export interface TargetOptions {
  /** Taken out of the targets: a Python regular expression of the whole path, or names matched as dotted suffixes. */
  readonly excludeModules?: string | readonly string[];
  /** Keep only these layers (the first number of a path); targets given by their whole path stay. */
  readonly layersToTransform?: number | readonly number[];
  /** Names of the containers whose number counts as the layer; default any. */
  readonly layersPattern?: string | readonly string[];
  /** Modules trained and stored whole, each a full copy: 4 bytes an entry. A name is the end of a path: `norm` means every norm. */
  readonly modulesToSave?: readonly string[];
  /** Base biases trained beside the adapter: of adapted modules, or of the whole model. Copies: the base stays as it is. */
  readonly bias?: 'none' | 'lora_only' | 'all';
  /** Embedding rows trained and stored whole, by token id; tied heads follow. A list means the input embedding. */
  readonly trainableTokens?: readonly number[] | Readonly<Record<string, readonly number[]>>;
}

export const targetNames = ['excludeModules', 'layersToTransform', 'layersPattern', 'modulesToSave', 'bias', 'trainableTokens'] as const;

/** Something a user should know that is no error: returned with the result and passed to `onWarning`, never printed. */
export interface Warning {
  readonly kind:
    | 'unknown-field'
    | 'default-field'
    | 'unused-pattern'
    | 'skipped-tensor'
    | 'base-name'
    | 'already-merged'
    | 'unused-exclude'
    | 'rank';
  readonly message: string;
  /** The names the message speaks of: config fields, tensors, patterns. */
  readonly names: readonly string[];
}

export type Warn = (kind: Warning['kind'], message: string, names: readonly string[]) => void;

/** What a method must know of the set it makes adapters for. */
export interface Binding {
  readonly name: string;
  readonly draw: Draw;
  /** The bias this set trains in place of the site's. */
  biasOf(site: Site): Parameter | undefined;
  readonly warn: Warn;
}

/** For a method before it is told its set's name. */
export const unbound: Binding = { name: 'default', draw: createDraw(0, 0), biasOf: () => undefined, warn: () => {} };

/** Shapes by slot; 'rank' stands for a side that the tensors decide. */
export type StoredShapes = Readonly<Record<string, readonly (number | 'rank')[]>>;

export interface Restored {
  readonly adapter: Adapter;
  readonly weight?: Weight;
}

/** A method whose adapters live in PEFT files. */
export interface AdapterMethod extends Method {
  /** The form of its files. */
  readonly file: AdapterFile;
  readonly targeting: TargetOptions;
  /** PEFT's names of the tensors an adapter may store, such as `lora_A.weight`. */
  readonly slots: readonly string[];
  /** The tensors a site's adapter does store. */
  stored(site: Site, model: Model): StoredShapes;
  /** The rank that the options give a site; undefined for methods without one. */
  rankAt(site: Site): number | undefined;
  /** Tensors that all its sites share, in files under their own names with no module before them. */
  readonly shared?: SharedTensors;
  /** Slots of whole numbers, int32 in files: what an adapter has there. `restore` is given them as int32 tensors. */
  readonly integers?: { readonly [slot: string]: (adapter: Adapter) => Promise<Int32Array> };
  /** What takes part in every step that trains a set of this method. */
  participant?(set: AdapterSet): Participant;
  /** Fields of its files that the model decides. */
  fileFields?(model: Model): FileFields;
  /** The same method, making the adapters of one set. */
  bind(binding: Binding): Method;
  /**
   * An adapter from stored tensors by PEFT parameter name; it takes them over. With the weight that the site must hold,
   * where the file was made for a rewritten base.
   */
  restore(site: Site, tensors: ReadonlyMap<string, Tensor>, binding: Binding, model: Model): Promise<Restored>;
  /**
   * What adapters of this method make of the base, if anything; then no other set may share their sites. 'slices': they
   * train inside the stored matrix, which read as the base is what it was.
   */
  readonly rewrites?: 'residual' | 'quantized' | 'slices';
  /**
   * 'known': its files count heads and channels as the model was loaded, and fit one whose order was changed since.
   * 'changed': it changes that order itself.
   */
  readonly unitOrder?: 'known' | 'changed';
  /** Whether the name in a file is enough to rewrite the base again. */
  readonly repeatable?: boolean;
  /** How its sets are written for the base as it was, where their own values are for another one. */
  readonly portable?: PortableForm;
  /**
   * Takes over what is no parameter from the adapters, by path, whose values the set was just given: their scales.
   * @returns the method whose options say so
   */
  takeOver?(set: PeftSet, from: ReadonlyMap<string, Adapter>): AdapterMethod;
}

export const anAdapterMethod: Noun = nounWith('a method of adapters, as lora() gives it', 'bind', 'targeting');

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
    model: Model,
  ): ReadonlyMap<string, Adapter>;
}

/** Fields of adapter_config.json that say nothing about the method and are kept for whoever reads the file next. */
export type FileFields = Readonly<Record<string, unknown>>;

/** The same change in the form of another method. */
export interface PortableForm {
  method(set: AdapterSet): AdapterMethod;
  /** What the file holds of an adapter in place of its own values, by slot. */
  tensors(adapter: Adapter): ReadonlyMap<string, StoredValues>;
}

/** Numbers of a file, read when they are written. */
export interface StoredValues {
  readonly shape: readonly number[];
  values(): Promise<Float32Array>;
}

/** An adapter whose effect can be turned up and down. */
export interface ScalableAdapter extends Adapter {
  /** Factor on the adapter's own scale, default 1; not stored in files. */
  strength: number;
}

/** Whether a value is an adapter with a strength. */
export const isScalable = (adapter: Adapter): adapter is ScalableAdapter => 'strength' in adapter;

/** An adapter that took a part out of the base's matrix. */
export interface RewritingAdapter extends Adapter {
  /** The original matrix from the rewritten one, f32, new; absent where it is lost. */
  original?(base: Weight): Tensor2D;
}

/** A parameter of an adapter. `slot` is its PEFT name, such as `lora_A.weight`; the set's name goes in before the ending. */
export function adapterParameter(path: string, name: string, slot: string, value: Tensor, role: Role): Parameter {
  return denseParameter(parameterPath(path, name, slot), value, { role, trainable: role !== 'statistic' && role !== 'index' });
}

/** `<path>.lora_A.<name>.weight`: where PEFT itself puts the name in a live model. */
export function parameterPath(path: string, name: string, slot: string): string {
  const ending = /\.(?:weight|bias)$/.exec(slot)?.[0] ?? '';
  return `${path}.${slot.slice(0, slot.length - ending.length)}.${name}${ending}`;
}

/** A set in PEFT form: what `adapt` and `loadAdapter` return and `saveAdapter` writes. */
export interface PeftSet extends AdapterSet {
  /** Another one after `swapAdapter`: the options that the values of now go with. */
  method: AdapterMethod;
  /** What a file says is targeted. */
  readonly targets: TargetModules;
  readonly fields: FileFields;
  readonly warnings: readonly Warning[];
  /** Base weights that go into the file too, by parameter name: PEFT stores those of adapted embeddings. */
  readonly alsoStored: ReadonlyMap<string, StoredValues>;
}

/** A parameter of the base. @param name of a site's weight: `lm_head.weight` */
export function baseOf(model: Model, name: string): StoredValues {
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
