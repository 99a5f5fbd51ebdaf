import { filesFolder, resolveSource, writeTogether, type ByteSink, type Folder, type SaveTarget } from '@niwaki/hub';
import { ConfigError } from '@niwaki/tensor';

/** Where an adapter is read from: a folder on disk, the URL of one, a list of Files, or files by name. */
export type AdapterSource = string | URL | readonly File[] | ReadonlyMap<string, Blob | Uint8Array> | Folder;

export async function folderOf(source: AdapterSource, { signal }: { signal?: AbortSignal | undefined } = {}): Promise<Folder> {
  if (source instanceof Map) return filesFolder(source, { name: 'the given files' });
  const resolved = await resolveSource(
    source as Exclude<AdapterSource, ReadonlyMap<string, unknown>>,
    signal === undefined ? {} : { signal },
  );
  if (resolved.kind === 'folder') return resolved.folder;
  throw new ConfigError('an adapter is a folder with adapter_config.json and adapter_model.safetensors, and this is a file', {
    source: String(source),
    help: 'Pass the folder that holds both.',
  });
}

/** Writes files of which all appear, or none: each is complete beside its place before the first is moved there. */
export const writeFiles = (target: SaveTarget, files: ReadonlyMap<string, (sink: ByteSink) => Promise<void>>): Promise<void> =>
  writeTogether(target, async (folder) => {
    for (const [file, write] of files) {
      const sink = await folder.create(file);
      // Whoever writes may say that it is done, or not.
      await write({ ...sink, commit: async () => {} });
      await sink.commit();
    }
  });
