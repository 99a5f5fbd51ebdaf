import type { ByteSink } from '@niwaki/hub';

/** Where a run writes: a directory in Node, the origin's private files in a browser, or memory. Paths use '/'. */
export interface RunFolder {
  /** For people: what errors and events call it. */
  readonly name: string;
  /** A folder inside this one. */
  inside(path: string): RunFolder;
  /** Names of the entries directly inside. */
  list(): Promise<readonly string[]>;
  /** undefined where there is no such file. */
  read(path: string): Promise<Uint8Array | undefined>;
  /** Creates parents. The file appears whole, or the old one stays; the bytes are on the disk when it resolves. */
  write(path: string, bytes: Uint8Array): Promise<void>;
  append(path: string, bytes: Uint8Array): Promise<void>;
  /** A file written in pieces, which appears whole at its `commit`. Absent: pieces are collected in memory. */
  sink?(path: string): Promise<ByteSink>;
  /** Moves a file or a directory: afterwards either all of it is there under the new name, or none. */
  rename(from: string, to: string): Promise<void>;
  /** Removes a file or a directory with all in it; nothing there is no error. */
  remove(path: string): Promise<void>;
}

/** A folder that lives as long as the page or process. */
export function memoryFolder(name = 'memory'): RunFolder {
  return folderOver(new Map(), name, '');
}

function folderOver(files: Map<string, Uint8Array>, name: string, root: string): RunFolder {
  const at = (path: string): string => root + path;
  const under = (path: string): string[] => [...files.keys()].filter((file) => file === at(path) || file.startsWith(`${at(path)}/`));
  return {
    name,
    inside: (path) => folderOver(files, `${name}/${path}`, `${at(path)}/`),
    list: async () => [
      ...new Set([...files.keys()].filter((file) => file.startsWith(root)).map((file) => file.slice(root.length).split('/')[0]!)),
    ],
    read: async (path) => files.get(at(path))?.slice(),
    write: async (path, bytes) => void files.set(at(path), bytes.slice()),
    append: async (path, bytes) => {
      const old = files.get(at(path)) ?? new Uint8Array();
      const next = new Uint8Array(old.length + bytes.length);
      next.set(old);
      next.set(bytes, old.length);
      files.set(at(path), next);
    },
    rename: async (from, to) => {
      for (const file of under(from)) {
        files.set(at(to) + file.slice(at(from).length), files.get(file)!);
        files.delete(file);
      }
    },
    remove: async (path) => {
      for (const file of under(path)) files.delete(file);
    },
  };
}
