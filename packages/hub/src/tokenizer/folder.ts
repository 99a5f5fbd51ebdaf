import type { Folder } from '../bytes/folder.ts';
import { parseJson } from '../json.ts';
import type { TokenizerParts } from './create.ts';
import { parseEosIds } from './files.ts';

/** The tokenizer's files of a folder, or undefined where there is no tokenizer.json. Throws FormatError for damaged ones. */
export async function folderTokenizer(folder: Folder): Promise<TokenizerParts | undefined> {
  const json = async (file: string): Promise<unknown> => {
    const bytes = await folder.bytes(file);
    return bytes === undefined ? undefined : parseJson(bytes, file);
  };
  const tokenizer = await json('tokenizer.json');
  if (tokenizer === undefined) return undefined;
  // What ends a generation: generation_config.json knows best, it may name several.
  const generation = await json('generation_config.json');
  const eosIds = parseEosIds(
    generation ?? (await json('config.json')) ?? {},
    generation === undefined ? 'config.json' : 'generation_config.json',
  );
  const template = await folder.bytes('chat_template.jinja');
  const config = (await json('tokenizer_config.json')) ?? {};
  return { tokenizer, config, eosIds, ...(template === undefined ? {} : { chatTemplate: new TextDecoder().decode(template) }) };
}
