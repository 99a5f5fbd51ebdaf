// What a user names and no more; authors of methods, weights, kernels and containers import from the packages below. Each
// package of methods has a list of its own, which comes as it stands. docs/generated/api.md is made of this file: a comment in
// front of an export begins a group there, and every type that is mentioned is exported.

// Devices.
export { init, type Device, type DeviceInfo, type InitOptions } from '@niwaki/backend';

// Models: reading, making, writing.
export { load } from './load.ts';
export { knownModels } from './known-models.ts';
export { saveQuantized, type SaveQuantizedOptions } from './save-quantized.ts';
export {
  filesFolder,
  loadTokenizer,
  saveModel,
  type ByteSink,
  type ByteSource,
  type Folder,
  type FolderSink,
  type JsonObject,
  type Loaded,
  type LoadOptions,
  type ReadOptions,
  type Resolved,
  type Resolver,
  type SaveModelOptions,
  type SaveTarget,
  type Source,
  type UrlOptions,
} from '@niwaki/hub';
export { initializeModel, type HfConfig, type InitializeOptions } from '@niwaki/nn';

// Text: tokenizers, documents, rows of tokens.
export type { ChatMessage, ChatOptions, DecodeOptions, EncodeOptions, StreamDecoder, Tokenizer } from '@niwaki/hub';
export {
  decodeText,
  languageData,
  packSamples,
  parseDocuments,
  parseJsonl,
  parseText,
  tokenizeDocuments,
  type Document,
  type LanguageData,
  type LanguageDataOptions,
  type Message,
  type Packed,
  type PackOptions,
  type Row,
  type Sample,
  type TokenizeOptions,
} from '@niwaki/train';
export { disposeBatch, languageBatch, type LanguageBatch, type LanguageRow } from '@niwaki/engine';
export { tokenBatch, type TokenBatch, type TokenBatchOptions } from '@niwaki/nn';

// Pruning and quantizing.
export { quantize, type Quantized, type QuantizeOptions } from '@niwaki/quant';
export { prune, type Pruned, type PruneOptions } from '@niwaki/sparse';
export { calibrationFolder, calibrationWindows, type CalibrationFolderOptions, type CalibrationWindowsOptions } from '@niwaki/train';
export type { ApplyOptions, BlockProgress, Calibrate, FitProgress, MethodProgress } from '@niwaki/engine';

// Adapters: putting on, switching, merging, files.
export { loadAdapter, swapAdapter } from './load.ts';
export {
  activateAdapters,
  adapt,
  deleteAdapter,
  forgetOriginals,
  mergeAdapter,
  mergeAndUnload,
  mergedAdapters,
  saveAdapter,
  setAdapterScale,
  unmergeAdapter,
  type ActivateOptions,
  type AdapterSource,
  type AdaptOptions,
  type LoadAdapterOptions,
  type MergedSiteReport,
  type MergeOptions,
  type MergeReport,
  type PeftSet,
  type SaveAdapterOptions,
  type SwapOptions,
  type TargetModules,
  type TargetOptions,
  type Warning,
} from '@niwaki/peft';

// Methods of quantization.
export * from '@niwaki/quant/methods';

// Methods of pruning, and training of a few entries or blocks.
export * from '@niwaki/sparse/methods';

// Adapters of low rank, and optimizers of low rank.
export * from '@niwaki/lowrank/methods';

// Optimizers, what they are put together from, schedules.
export * from '@niwaki/optim/methods';

// Gradients and losses.
export * from '@niwaki/engine/methods';

// Training.
export {
  diskFolder,
  directoryFolder,
  memoryFolder,
  privateFolder,
  train,
  type CheckpointEvent,
  type CheckpointOptions,
  type DataPlan,
  type DataWindow,
  type EvaluationEvent,
  type MemoryByOwner,
  type PlanOptions,
  type ResumeEvent,
  type RunFolder,
  type StepEvent,
  type TrainData,
  type TrainEvent,
  type TrainOptions,
} from '@niwaki/train';
export type { CommitMode } from '@niwaki/engine';

// Running: text, logits, scores, speed.
export { forward, generate, type ForwardOptions, type GeneratedToken, type GenerateOptions, type SamplingOptions } from '@niwaki/nn';
export { evaluateBatch, evaluateText, type EvaluateBatchOptions, type EvaluateTextOptions, type TextScore } from '@niwaki/train';
export { withAdapters } from '@niwaki/tensor';
export { measureSpeed, type SpeedOptions, type SpeedRow } from './measure-speed.ts';

// Runs as data.
export { loadResult, recipeKit, runRecipe } from './kit.ts';
export {
  parseRecipe,
  type Bound,
  type Factory,
  type KitOptions,
  type LoadedResult,
  type LoadResultEvent,
  type LoadResultOptions,
  type MatrixChange,
  type Placing,
  type Recipe,
  type RecipeEvent,
  type RecipeKit,
  type RecipeResult,
  type RunRecipeOptions,
} from '@niwaki/train';

// The nouns: what the verbs take and give.
export type { Activations, AffineBits, Json, Parameter, Role, View } from '@niwaki/tensor';
export {
  weightBytes,
  type ActivationQuantizer,
  type Batch,
  type Codebook4Options,
  type Format,
  type Session,
  type Store,
  type Weight,
} from '@niwaki/weights';
export type {
  Adapter,
  AdapterSet,
  Coupling,
  Model,
  ModelInfo,
  Point,
  ReplaceOptions,
  Selector,
  Site,
  SiteOptions,
  Stage,
} from '@niwaki/nn';
export type { Transform } from '@niwaki/optim';
export type { Estimator, IdleState, Method, Objective, Participant, WalkCheckpoint } from '@niwaki/engine';
export type { AdapterFile, AdapterMethod } from '@niwaki/peft';
export type { Pruner } from '@niwaki/sparse';
export type { Initializer } from '@niwaki/lowrank';

// Errors.
export {
  AbortError,
  ConfigError,
  DataError,
  DeviceError,
  FormatError,
  NiwakiError,
  NotFoundError,
  NumericError,
  ShapeError,
  StateError,
  type ErrorDetails,
} from '@niwaki/tensor';
export { BusyModelError } from '@niwaki/engine';
export {
  BaseModelError,
  MissingTensorsError,
  RankError,
  TensorTypeError,
  UnexpectedTensorsError,
  UnsupportedFieldError,
} from '@niwaki/peft';
export { CheckpointError } from '@niwaki/train';
