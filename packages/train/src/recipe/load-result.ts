import { checkOptions, ConfigError, NotFoundError, throwIfAborted } from '@niwaki/tensor';
import { calibrationHash, baseChanges, disposeBatch } from '@niwaki/engine';
import { memorySource, type Folder, type Loaded } from '@niwaki/hub';
import type { AdapterSet } from '@niwaki/nn';
import type { RunFolder } from '../checkpoint/run-folder.ts';
import { differencesBetween, inWords } from '../checkpoint/run-identity.ts';
import { isMade, readBase, type MadeBase } from './base-record.ts';
import type { RecipeKit } from './kit.ts';
import { calibrationOf, changeMatrices, stepsOf, type MatrixChange } from './prepare-model.ts';
import type { BaseOfRecipe } from './recipe.ts';

export interface LoadResultOptions {
  /**
   * Another place of the model: as it was before it was pruned or quantized, or the changed one itself. Default: what the
   * folder says.
   */
  readonly model?: string;
  /** Default false: loaded to be used. */
  readonly trainable?: boolean;
  readonly signal?: AbortSignal;
  readonly onEvent?: (event: LoadResultEvent) => void;
}

export type LoadResultEvent =
  | { readonly kind: 'load'; readonly loaded: number; readonly total: number; readonly name: string }
  | { readonly kind: 'warning'; readonly message: string }
  | MatrixChange;

export interface LoadedResult extends Loaded {
  /** Attached and active. */
  readonly adapter: AdapterSet;
}

/**
 * What a recipe with an adapter left in its folder, as it was at the end of training: the model, pruned and quantized as its
 * `base.json` says, and the adapter on it. A base that was saved (`saveBase`) is loaded; any other is made again, which takes
 * as long and as much memory as it did, and the calibration text. One that does not come out to the same bits (another device
 * rounds otherwise) is a warning. Where nothing was pruned or quantized, the adapter is put on the model.
 * @param where a path on the disk (Node), or any folder; of a folder that is no path a saved base is read whole
 * @throws NotFoundError where there is no base.json, or what it names is not there; FormatError for what is none;
 *   ConfigError, among them where the calibration text is another one; AbortError. Then no tensor is left
 */
export async function loadResult(where: string | RunFolder, kit: RecipeKit, options: LoadResultOptions = {}): Promise<LoadedResult> {
  checkOptions('loadResult', options, ['model', 'trainable', 'signal', 'onEvent']);
  const { trainable = false, signal, onEvent = () => {} } = options;
  const stop = signal === undefined ? {} : { signal };
  const folder = typeof where === 'string' ? kit.folder(where) : where;
  const record = await readBase(folder);
  if (record === undefined) {
    throw new NotFoundError(`${folder.name}: no base.json, which says what the adapter stands on`, {
      folder: folder.name,
      help: 'Is it the folder of a recipe with an adapter? Other adapters are put on a model with loadAdapter.',
    });
  }
  const { made, saved } = record;
  const isSaved = saved !== undefined && options.model === undefined;
  const source = isSaved ? insideOf(where, saved) : (options.model ?? record.model);
  const onWarning = (message: string): void => onEvent({ kind: 'warning', message });
  const loaded = await kit.load(source, { ...stop, onProgress: (progress) => onEvent({ kind: 'load', ...progress }) });
  const { model } = loaded;
  try {
    loaded.warnings.forEach(onWarning);
    if (!isSaved && made !== undefined && !(await isMade(model, made))) {
      await makeAgain(record, kit, loaded, made, { ...stop, onEvent });
      if (!(await isMade(model, made))) onWarning(otherBase(made, loaded));
    }
    throwIfAborted(signal, 'loading');
    const adapterAt = typeof where === 'string' ? where : readOnly(where);
    const adapter = await kit.loadAdapter(model, adapterAt, {
      trainable,
      ...stop,
      // A base that was saved has another name than the model it was made of.
      onWarning: ({ kind, message }) => (isSaved && kind === 'base-name' ? undefined : onWarning(message)),
    });
    model.active = [adapter.name];
    return { ...loaded, adapter };
  } catch (error) {
    model.dispose();
    throw error;
  }
}

async function makeAgain(
  recipe: BaseOfRecipe,
  kit: RecipeKit,
  loaded: Loaded,
  { changes }: MadeBase,
  { onEvent, ...stop }: { readonly signal?: AbortSignal; readonly onEvent: (event: LoadResultEvent) => void },
): Promise<void> {
  const { calibrate } = recipe;
  const steps = stepsOf(recipe, kit);
  const text = calibrate === undefined ? undefined : await kit.readText(calibrate);
  const expected = changes.find(({ calibration }) => calibration !== undefined)?.calibration;
  if (expected !== undefined) await checkText(recipe, loaded, text, expected);
  await changeMatrices(recipe, kit, loaded, steps, { seed: recipe.seed ?? 0, onChange: onEvent, text, ...stop });
}

/** Before hours are spent on another base. */
async function checkText(recipe: BaseOfRecipe, loaded: Loaded, text: string | undefined, expected: string): Promise<void> {
  const batches = calibrationOf(recipe, loaded, text);
  try {
    const given = await calibrationHash(batches);
    if (given === expected) return;
    throw new ConfigError(
      `'${recipe.calibrate}' is not the text that the base was calibrated with: its hash was ${expected}, is ${given}`,
      {
        calibrate: recipe.calibrate,
        expected,
        given,
        help: 'Put the text back, or give the base itself: train with saveBase to keep it.',
      },
    );
  } finally {
    batches.forEach(disposeBatch);
  }
}

function otherBase({ changes }: MadeBase, { model }: Loaded): string {
  const different = differencesBetween(changes, baseChanges(model), 'changes');
  const why = different.length === 0 ? 'another device or another model rounds otherwise' : different.map(inWords).join('; ');
  return `the base that was made again is not to the bit the one that the adapter was trained on: ${why}`;
}

const insideOf = (where: string | RunFolder, name: string): string | Folder =>
  typeof where === 'string' ? `${where}/${name}` : readOnly(where.inside(name));

/** A run's folder for readers; files are read whole. */
const readOnly = (folder: RunFolder): Folder => ({
  name: folder.name,
  open: async (file) => {
    const bytes = await folder.read(file);
    return bytes && memorySource(bytes, { name: file });
  },
  bytes: (file) => folder.read(file),
});
