import type { Json } from '@niwaki/tensor';
import type { Model } from '@niwaki/nn';
import type { AdapterMethod, FileFields, PeftSet } from '../adapter-method.ts';
import type { TargetModules } from '../targets.ts';
import type { Warn } from '../warning.ts';

export interface ReadConfig {
  readonly method: AdapterMethod;
  readonly targets: TargetModules;
  /** Fields that are no options of the method and are written back as they came. */
  readonly fields: FileFields;
  /** Whether the config names a rank; one that does not takes the tensors' word. */
  readonly statesRank: boolean;
}

/** One `peft_type`: how its config is read and written. A new one is a file with this shape and an entry in `families.ts`. */
export interface PeftFamily {
  readonly peftType: string;
  /** @throws FormatError, ConfigError, UnsupportedFieldError naming the fields */
  read(config: { readonly [field: string]: Json }, model: Model, warn: Warn): ReadConfig;
  /** Every field of the type, defaults included. */
  write(set: PeftSet): { readonly [field: string]: Json };
}
