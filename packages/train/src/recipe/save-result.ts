import { memorySink, type FolderSink, type Tokenizer } from '@niwaki/hub';
import type { AdapterSet, Model } from '@niwaki/nn';
import type { RunFolder } from '../checkpoint/run-folder.ts';
import type { RecipeKit } from './kit.ts';

/** Writes what was trained: the adapter, or the whole model in `model/`. */
export async function saveResult(kit: RecipeKit, folder: RunFolder, { model, adapter, tokenizer }: Trained): Promise<void> {
  if (adapter === undefined) await kit.saveModel(model, sinkInto(folder.inside('model')), tokenizer === undefined ? {} : { tokenizer });
  else await kit.saveAdapter(adapter, sinkInto(folder));
}

interface Trained {
  readonly model: Model;
  readonly adapter: AdapterSet | undefined;
  readonly tokenizer: Tokenizer | undefined;
}

/** Files go to the folder as they come, where it takes them so; else they are collected in memory and written whole. */
export const sinkInto = (folder: RunFolder): FolderSink => ({
  name: folder.name,
  create: async (file) => {
    if (folder.sink !== undefined) return folder.sink(file);
    const sink = memorySink({ name: file });
    return { ...sink, commit: () => folder.write(file, sink.bytes()) };
  },
  remove: (file) => folder.remove(file),
});
