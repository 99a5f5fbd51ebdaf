import type { Json, Range, RawTensor } from '@niwaki/tensor';

export interface TensorEntry {
  /** The container's own name of the type: 'F32', 'U8', 'Q4_K'… */
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: number;
}

/** The tensors of a container (safetensors shards, a GGUF file), read by ranges and never whole. */
export interface TensorSource {
  names(): readonly string[];
  /** Throws NotFoundError for a name that is not there. */
  info(name: string): TensorEntry;
  /**
   * @param range bytes [from, to) of this tensor alone, default all; `shape` of the result stays the whole tensor's
   */
  read(name: string, range?: Range): Promise<RawTensor>;
}

export interface FormatReadOptions {
  /** Told what the file says about itself that its contents contradict. */
  readonly warn?: (message: string) => void;
}

/**
 * Maps tensors of a container to a value (a Weight, an adapter) and back. Formats are values: a method package exports
 * its own, the caller hands them to the loader, so that a container knows no method.
 */
export interface Format<T> {
  readonly name: string;
  /** Whether the tensors of `path` are in this format: decided by the names present, not by the config alone. */
  claims(names: ReadonlySet<string>, path: string, config: Json): boolean;
  /** @param path of the module: `model.layers.0.self_attn.q_proj` */
  read(path: string, source: TensorSource, config: Json, options?: FormatReadOptions): Promise<T>;
  /** The tensors to store under `path`, by full name; undefined where the value is not in this format. */
  write(value: T, path: string): Promise<ReadonlyMap<string, RawTensor>> | undefined;
  /** What a config file says about the values written (`quantization_config`). */
  config?(values: ReadonlyMap<string, T>): Json;
}
