import type { Tokenizer } from '@niwaki/hub';
import type { AdapterSet, Model } from '@niwaki/nn';
import type { RunFolder } from '../checkpoint/run-folder.ts';
import { removeBase, writeBase, type BaseRecord } from './base-record.ts';
import type { RecipeKit } from './kit.ts';
import { sinkInto } from './sink-into.ts';

/** Writes what was trained: the adapter and what it stands on, or the whole model in `model/`. */
export async function saveResult(kit: RecipeKit, folder: RunFolder, { model, adapter, tokenizer, base }: Trained): Promise<void> {
  // What an earlier run left says nothing of this one's adapter; without one there is nothing to say.
  await removeBase(folder);
  if (adapter === undefined) return kit.saveModel(model, sinkInto(folder.inside('model')), tokenizer === undefined ? {} : { tokenizer });
  await kit.saveAdapter(adapter, sinkInto(folder));
  if (base !== undefined) await writeBase(folder, base);
}

interface Trained {
  readonly model: Model;
  readonly adapter: AdapterSet | undefined;
  readonly tokenizer: Tokenizer | undefined;
  readonly base: BaseRecord | undefined;
}
