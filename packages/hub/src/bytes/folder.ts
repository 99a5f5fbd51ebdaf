import { ConfigError, NotFoundError } from '@niwaki/tensor';
import { blobSource, memorySource, readWhole, type ByteSource } from './byte-source.ts';
import { fileSource, nodeFileSystem } from './node.ts';
import { cannotWrite, fileSink, memorySink, streamSink, type ByteSink } from './sink.ts';
import { fetchBytes, urlSource, type UrlOptions } from './url.ts';

/** Files by name: a folder on disk, under a URL, or chosen in a browser. */
export interface Folder {
  readonly name: string;
  /** The file for reading by ranges; undefined where there is none. */
  open(file: string): Promise<ByteSource | undefined>;
  /** A small file whole; undefined where there is none. */
  bytes(file: string): Promise<Uint8Array | undefined>;
}

const readAll = async (source: ByteSource | undefined, options: UrlOptions): Promise<Uint8Array | undefined> =>
  source && readWhole(source, options);

/** A folder on disk. */
export function nodeFolder(folder: string, options: UrlOptions = {}): Folder {
  const { fs, path } = nodeFileSystem();
  const open = async (file: string): Promise<ByteSource | undefined> => {
    const full = path.join(folder, file);
    const stat = await fs.stat(full).catch(() => undefined);
    return stat?.isFile() ? fileSource(full) : undefined;
  };
  return { name: folder, open, bytes: async (file) => readAll(await open(file), options) };
}

/** What lies under a URL; a query or token of the address goes to every file. */
export function urlFolder(url: string, options: UrlOptions = {}): Folder {
  const at = (file: string): string => {
    const address = new URL(url);
    address.pathname = `${address.pathname.replace(/\/$/, '')}/${encodeURIComponent(file)}`;
    return address.href;
  };
  return {
    name: url,
    open: async (file) => {
      try {
        return await urlSource(at(file), options);
      } catch (error) {
        if (error instanceof NotFoundError && error.details['status'] === 404) return undefined;
        throw error;
      }
    },
    bytes: (file) => fetchBytes(at(file), options),
  };
}

/** Files in memory or chosen by the user, by name. */
export function filesFolder(files: ReadonlyMap<string, Blob | Uint8Array>, { name = 'files' }: { name?: string } = {}): Folder {
  const open = async (file: string): Promise<ByteSource | undefined> => {
    const found = files.get(file);
    if (found === undefined) return undefined;
    return found instanceof Uint8Array ? memorySource(found, { name: file }) : blobSource(found, { name: file });
  };
  return { name, open, bytes: async (file) => readAll(await open(file), {}) };
}

/** Where several files of one model are written. */
export interface FolderSink {
  readonly name: string;
  create(file: string): Promise<ByteSink>;
  /** Takes away a file that those written now replace; nothing there is no error. */
  remove?(file: string): Promise<void>;
}

/** A folder on disk, made where it is missing; each file appears whole or not at all. */
export async function nodeFolderSink(folder: string): Promise<FolderSink> {
  const { fs, path } = nodeFileSystem();
  await fs.mkdir(folder, { recursive: true }).catch((cause: NodeJS.ErrnoException) => {
    throw cannotWrite(folder, cause);
  });
  return {
    name: folder,
    create: (file) => fileSink(path.join(folder, file)),
    remove: (file) => fs.rm(path.join(folder, file), { force: true }),
  };
}

/** A folder that a browser's user chose, or its private file system. */
export function directorySink(directory: FileSystemDirectoryHandle): FolderSink {
  return {
    name: directory.name,
    create: async (file) => {
      const handle = await directory.getFileHandle(file, { create: true });
      // TypeScript's stream takes any buffer, ours are never shared.
      return streamSink((await handle.createWritable()) as unknown as WritableStream<Uint8Array>, { name: file });
    },
    remove: async (file) => {
      try {
        await directory.removeEntry(file);
      } catch (error) {
        if ((error as DOMException).name !== 'NotFoundError') throw error;
      }
    },
  };
}

/** Files in memory; `files` holds those that were committed. */
export function memoryFolderSink(files: Map<string, Uint8Array> = new Map()): FolderSink & { readonly files: Map<string, Uint8Array> } {
  return {
    name: 'memory',
    files,
    create: async (file) => {
      const sink = memorySink({ name: file });
      return {
        ...sink,
        commit: async () => {
          await sink.commit();
          files.set(file, sink.bytes());
        },
      };
    },
    remove: async (file) => void files.delete(file),
  };
}

/** A folder whose files appear together: nothing does before `commit`, and `abandon` leaves all as it was. */
export function stagedFolder(folder: FolderSink): FolderSink & { commit(): Promise<void>; abandon(): Promise<void> } {
  const begun: ByteSink[] = [];
  const written: ByteSink[] = [];
  const removed: string[] = [];
  return {
    name: folder.name,
    create: async (file) => {
      const sink = await folder.create(file);
      begun.push(sink);
      return { ...sink, commit: async () => void written.push(sink) };
    },
    remove: async (file) => void removed.push(file),
    commit: async () => {
      for (const sink of written) await sink.commit();
      for (const file of removed) await folder.remove?.(file);
    },
    abandon: async () => {
      for (const sink of begun) await sink.abandon();
    },
  };
}

/** Writes files of which all appear, or none; each commits its sink as it is complete. */
export async function writeTogether(target: SaveTarget, write: (folder: FolderSink) => Promise<void>): Promise<void> {
  const folder = stagedFolder(await openFolderSink(target));
  try {
    await write(folder);
    await folder.commit();
  } catch (error) {
    await folder.abandon();
    throw error;
  }
}

export type SaveTarget = string | FileSystemDirectoryHandle | Map<string, Uint8Array> | FolderSink;

/** A path of a folder on disk, a browser's directory handle, a map that takes the files by name, or a sink of one's own. */
export async function openFolderSink(target: SaveTarget): Promise<FolderSink> {
  if (typeof target === 'string') return nodeFolderSink(target);
  if (target instanceof Map) return memoryFolderSink(target);
  if ('create' in target) return target;
  if ('getFileHandle' in target) return directorySink(target);
  throw new ConfigError('files are saved to a folder path, a directory handle, a Map or a sink', { target });
}

/** Writes one small file whole. */
export async function writeFile(folder: FolderSink, file: string, content: string | Uint8Array): Promise<void> {
  const sink = await folder.create(file);
  try {
    await sink.write(typeof content === 'string' ? new TextEncoder().encode(content) : content);
    await sink.commit();
  } catch (error) {
    await sink.abandon();
    throw error;
  }
}
