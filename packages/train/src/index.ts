export { parseDocuments, parseJsonl, parseText, type Document, type Message } from './data/document.ts';
export { decodeText } from './data/decode-text.ts';
export type { Sample } from './data/sample.ts';
export { packSamples, rowOf, targetsOf, type Packed, type PackOptions, type Row } from './data/pack.ts';
export type { DataPlan, PlanOptions, TrainData, DataWindow } from './data/train-data.ts';
export { languageData, type LanguageData, type LanguageDataOptions } from './data/language-data.ts';
export { calibrationWindows, type CalibrationWindowsOptions } from './data/calibration-windows.ts';
export { exactBatches } from './data/exact-batches.ts';
export { epochOrder } from './data/order.ts';
export { memoryFolder, type RunFolder } from './checkpoint/run-folder.ts';
export { directoryFolder, privateFolder } from './checkpoint/directory-folder.ts';
export { diskFolder } from './checkpoint/disk-folder.ts';
export { calibrationFolder, type CalibrationFolderOptions } from './checkpoint/calibration-folder.ts';
export {
  CheckpointError,
  checkpointNames,
  loadCheckpoint,
  saveCheckpoint,
  type Checkpoint,
  type RunState,
} from './checkpoint/checkpoint.ts';
export type { RunIdentity } from './checkpoint/run-identity.ts';
export { kindOf, parseRecipe, recipeNames, type Bound, type Factory, type Recipe, type RecipeName } from './recipe/recipe.ts';
export { tokenizeDocuments, type TokenizeOptions } from './data/tokenize.ts';
export { evaluateBatch, type EvaluateBatchOptions } from './evaluate/evaluate-batch.ts';
export { evaluateText, type EvaluateTextOptions, type TextScore } from './evaluate/evaluate-text.ts';
export { train, type TrainOptions } from './loop/train.ts';
export type { CheckpointOptions } from './loop/keeper.ts';
export type { CheckpointEvent, EvaluationEvent, MemoryByOwner, ResumeEvent, StepEvent, TrainEvent } from './loop/events.ts';
export type { KitOptions, Placing, RecipeKit } from './recipe/kit.ts';
export type { MatrixChange } from './recipe/prepare-model.ts';
export { readBase, type BaseRecord, type MadeBase } from './recipe/base-record.ts';
export { loadResult, type LoadedResult, type LoadResultEvent, type LoadResultOptions } from './recipe/load-result.ts';
export { runRecipe, type RecipeEvent, type RecipeResult, type RunRecipeOptions } from './recipe/run-recipe.ts';
