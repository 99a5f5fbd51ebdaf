import type { Draw, Parameter, Tensor } from '@niwaki/tensor';
import type { Method } from '@niwaki/engine';
import type { Adapter, AdapterSet, Site } from '@niwaki/nn';
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

/** A method whose adapters live in PEFT files. */
export interface AdapterMethod extends Method {
  /** `peft_type` of the files. */
  readonly peftType: string;
  readonly targeting: TargetOptions;
  /** The same method, making the adapters of one set. */
  bind(binding: Binding): Method;
  /** An adapter from stored tensors by PEFT parameter name; it takes them over. */
  restore(site: Site, tensors: ReadonlyMap<string, Tensor>, binding: Binding): Adapter;
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
}

export const isPeftSet = (set: AdapterSet): set is PeftSet => 'targets' in set && 'fields' in set;
