import {
  blobSource,
  fileSink,
  fileSource,
  memorySink,
  memorySource,
  nodeFileSystem,
  urlSource,
  type ByteSink,
  type ByteSource,
} from '@niwaki/hub';
import { NotFoundError } from '@niwaki/tensor';

/** Where an adapter is read from: a folder on disk, the URL of one, or its files by name. */
export type AdapterSource = string | URL | ReadonlyMap<string, Blob | Uint8Array>;
/** Where an adapter is written to: a folder on disk, made if it is not there, or a map that takes the files by name. */
export type AdapterTarget = string | Map<string, Uint8Array>;

export interface ReadableFolder {
  readonly name: string;
  /** Undefined: there is no such file. */
  open(file: string): Promise<ByteSource | undefined>;
}

export function folderOf(source: AdapterSource, { signal }: { signal?: AbortSignal | undefined } = {}): ReadableFolder {
  if (typeof source !== 'string' && !(source instanceof URL)) return mapFolder(source);
  const name = String(source);
  return /^https?:\/\//.test(name) ? urlFolder(name, signal) : diskFolder(name.replace(/^file:\/\//, ''));
}

const mapFolder = (files: ReadonlyMap<string, Blob | Uint8Array>): ReadableFolder => ({
  name: 'the given files',
  open: async (file) => {
    const found = files.get(file);
    if (found === undefined) return undefined;
    return found instanceof Uint8Array ? memorySource(found, { name: file }) : blobSource(found, { name: file });
  },
});

const diskFolder = (folder: string): ReadableFolder => ({
  name: folder,
  open: async (file) => {
    const { fs, path } = nodeFileSystem();
    const full = path.join(folder, file);
    const there = await fs.stat(full).then(
      (stat) => stat.isFile(),
      () => false,
    );
    return there ? fileSource(full) : undefined;
  },
});

const urlFolder = (url: string, signal: AbortSignal | undefined): ReadableFolder => ({
  name: url,
  open: async (file) => {
    const at = new URL(file, url.endsWith('/') ? url : `${url}/`).href;
    const options = signal === undefined ? {} : { signal };
    try {
      return await urlSource(at, options);
    } catch (error) {
      if (error instanceof NotFoundError && error.details['status'] === 404) return undefined;
      throw error;
    }
  },
});

/**
 * Writes files so that all of them appear, or none: each is complete beside its place before the first is moved there.
 * @param write gets a sink per file, whose commit is held back to the end
 */
export async function writeFolder(target: AdapterTarget, files: ReadonlyMap<string, (sink: ByteSink) => Promise<void>>): Promise<void> {
  const sinks: { readonly sink: ByteSink; readonly done: () => Promise<void> }[] = [];
  try {
    for (const [file, write] of files) {
      const opened = await openSink(target, file);
      sinks.push(opened);
      await write({ ...opened.sink, commit: async () => {}, abandon: async () => {} });
    }
    for (const { done } of sinks) await done();
  } catch (error) {
    for (const { sink } of sinks) await sink.abandon();
    throw error;
  }
}

async function openSink(target: AdapterTarget, file: string): Promise<{ sink: ByteSink; done: () => Promise<void> }> {
  if (typeof target !== 'string') {
    const sink = memorySink({ name: file });
    return { sink, done: async () => void target.set(file, sink.bytes()) };
  }
  const { fs, path } = nodeFileSystem();
  await fs.mkdir(target, { recursive: true });
  const sink = await fileSink(path.join(target, file));
  return { sink, done: () => sink.commit() };
}
