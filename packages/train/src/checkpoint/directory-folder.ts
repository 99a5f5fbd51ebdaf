import { directorySink } from '@niwaki/hub';
import type { RunFolder } from './run-folder.ts';

/**
 * A directory of the browser: one that the user chose, or the origin's private files. A directory cannot be renamed
 * there, so its files are copied one by one in the order of their names: whoever reads the last of them first sees a whole
 * directory or none.
 */
export function directoryFolder(root: FileSystemDirectoryHandle): RunFolder {
  const directoryOf = async (path: readonly string[], { create }: { create: boolean }): Promise<FileSystemDirectoryHandle> => {
    let at = root;
    for (const part of path) at = await at.getDirectoryHandle(part, { create });
    return at;
  };
  const split = (path: string): { parents: string[]; name: string } => {
    const parts = path.split('/');
    return { parents: parts.slice(0, -1), name: parts.at(-1)! };
  };
  const put = async (path: string, bytes: Uint8Array, { append }: { append: boolean }): Promise<void> => {
    const { parents, name } = split(path);
    const file = await (await directoryOf(parents, { create: true })).getFileHandle(name, { create: true });
    // What is written becomes visible when the stream closes, all at once.
    const stream = await file.createWritable({ keepExistingData: append });
    try {
      if (append) await stream.seek((await file.getFile()).size);
      await stream.write(bytes as Uint8Array<ArrayBuffer>);
      await stream.close();
    } catch (error) {
      await stream.abort().catch(() => undefined);
      throw error;
    }
  };
  const read = async (path: string): Promise<Uint8Array | undefined> => {
    const { parents, name } = split(path);
    return absentAs(undefined, async () => {
      const file = await (await directoryOf(parents, { create: false })).getFileHandle(name);
      return new Uint8Array(await (await file.getFile()).arrayBuffer());
    });
  };
  const remove = async (path: string): Promise<void> => {
    const { parents, name } = split(path);
    await absentAs(undefined, async () => (await directoryOf(parents, { create: false })).removeEntry(name, { recursive: true }));
  };
  const namesIn = async (path: readonly string[]): Promise<string[]> =>
    absentAs([], async () => {
      const names: string[] = [];
      for await (const name of (await directoryOf(path, { create: false })).keys()) names.push(name);
      return names.sort();
    });

  return {
    name: root.name === '' ? 'private files' : root.name,
    inside: (path) => nested(directoryFolder(root), path, async () => namesIn(path.split('/'))),
    list: () => namesIn([]),
    read,
    write: (path, bytes) => put(path, bytes, { append: false }),
    sink: async (path) => {
      const { parents, name } = split(path);
      return directorySink(await directoryOf(parents, { create: true })).create(name);
    },
    append: (path, bytes) => put(path, bytes, { append: true }),
    rename: async (from, to) => {
      const names = await namesIn(from.split('/')).catch((): string[] => []);
      const pairs = names.length === 0 ? [[from, to] as const] : names.map((name) => [`${from}/${name}`, `${to}/${name}`] as const);
      for (const [old, next] of pairs) await put(next, (await read(old))!, { append: false });
      await remove(from);
    },
    remove,
  };
}

/** A folder of the origin's private files, which nobody else sees and which outlives the page. */
export async function privateFolder(name: string): Promise<RunFolder> {
  const root = await navigator.storage.getDirectory();
  return directoryFolder(await root.getDirectoryHandle(name, { create: true }));
}

/** A folder inside another: the same, with longer paths. */
function nested(folder: RunFolder, prefix: string, list: () => Promise<readonly string[]>): RunFolder {
  const at = (path: string): string => `${prefix}/${path}`;
  return {
    name: `${folder.name}/${prefix}`,
    inside: (path) => folder.inside(at(path)),
    list,
    read: (path) => folder.read(at(path)),
    write: (path, bytes) => folder.write(at(path), bytes),
    ...(folder.sink && { sink: (path: string) => folder.sink!(at(path)) }),
    append: (path, bytes) => folder.append(at(path), bytes),
    rename: (from, to) => folder.rename(at(from), at(to)),
    remove: (path) => folder.remove(at(path)),
  };
}

async function absentAs<T>(value: T, run: () => Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (error) {
    if ((error as DOMException).name === 'NotFoundError') return value;
    throw error;
  }
}
