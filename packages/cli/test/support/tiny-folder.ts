import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { byteTokenizer, byteVocabularySize, tinyLlama } from '@niwaki/testing';
import { saveModel } from 'niwaki';

export interface TinyFolder {
  readonly root: string;
  /** A path inside. */
  at(...parts: string[]): string;
  write(name: string, content: string | Uint8Array): Promise<string>;
  remove(): Promise<void>;
}

/** A folder with a random model of a byte vocabulary in `model/`, and room for what tests write. */
export async function tinyFolder(): Promise<TinyFolder> {
  const root = await mkdtemp(join(tmpdir(), 'niwaki-cli-'));
  const model = await tinyLlama({ vocab_size: byteVocabularySize, tie_word_embeddings: true }, { trainable: false });
  await saveModel(model, join(root, 'model'), { tokenizer: byteTokenizer() });
  model.dispose();
  const at = (...parts: string[]): string => join(root, ...parts);
  return {
    root,
    at,
    write: async (name, content) => {
      await writeFile(at(name), content);
      return at(name);
    },
    remove: () => rm(root, { recursive: true, force: true }),
  };
}
