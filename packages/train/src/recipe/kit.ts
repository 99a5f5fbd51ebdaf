import type { Json } from '@niwaki/tensor';
import type { Calibrate, Method, MethodProgress, Objective } from '@niwaki/engine';
import type { AdapterMethod } from '@niwaki/peft';
import type { Folder, Loaded, SaveTarget, Tokenizer } from '@niwaki/hub';
import type { AdapterSet, Model, Selector } from '@niwaki/nn';
import type { Schedule, Transform } from '@niwaki/optim';
import type { RunFolder } from '../checkpoint/run-folder.ts';

export type KitOptions = Readonly<Record<string, Json>>;

/** How a method is put on a model. */
export interface Placing {
  readonly at: Selector;
  readonly seed: number;
  readonly signal?: AbortSignal;
  /** For methods that are calibrated, and for them alone. */
  readonly calibrate?: Calibrate;
  readonly onProgress?: (progress: MethodProgress) => void;
}

/** What recipes may name, by kind, and the doors to files: values, so that this package imports no method. */
export interface RecipeKit {
  /** Chooses the device; returns it in words. */
  init(options: {
    device?: 'auto' | 'cpu' | 'wasm' | 'webgpu';
    threads?: number;
  }): Promise<{ readonly device: string; readonly reason: string; readonly description?: string }>;
  load(
    source: string | Folder,
    options: { signal?: AbortSignal; onProgress?: (progress: { loaded: number; total: number; name: string }) => void },
  ): Promise<Loaded>;
  readText(path: string): Promise<string>;
  folder(path: string): RunFolder;
  readonly prune: Readonly<Record<string, (options: KitOptions) => Method>>;
  readonly quantize: Readonly<Record<string, (options: KitOptions) => Method>>;
  readonly adapt: Readonly<Record<string, (options: KitOptions) => AdapterMethod>>;
  /** @returns the part of the entries that is 0 afterwards */
  pruneModel(model: Model, method: Method, placing: Placing): Promise<{ readonly sparsity: number }>;
  quantizeModel(model: Model, method: Method, placing: Placing): Promise<unknown>;
  adaptModel(model: Model, method: AdapterMethod, placing: Placing): Promise<AdapterSet>;
  loadAdapter(
    model: Model,
    source: string | Folder,
    options: { trainable: boolean; signal?: AbortSignal; onWarning?: (warning: { kind: string; message: string }) => void },
  ): Promise<AdapterSet>;
  saveAdapter(set: AdapterSet, target: SaveTarget): Promise<void>;
  /** Writes a whole model: config, tensors, tokenizer. */
  saveModel(model: Model, target: SaveTarget, options: { tokenizer?: Tokenizer; signal?: AbortSignal }): Promise<void>;
  /**
   * Writes a model as it is stored, so that it comes back without loss.
   * @throws ConfigError where a matrix is in a form that no file holds; then nothing is written
   */
  saveStored(model: Model, target: SaveTarget, options: { tokenizer?: Tokenizer; signal?: AbortSignal }): Promise<void>;
  readonly optimizers: Readonly<Record<string, (options: KitOptions) => Transform>>;
  readonly schedules: Readonly<Record<string, (options: KitOptions) => Schedule>>;
  readonly objectives: Readonly<Record<string, (options: KitOptions) => Objective>>;
}
