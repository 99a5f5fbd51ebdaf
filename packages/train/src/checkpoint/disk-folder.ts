import { cannotWrite, fileSink, nodeFileSystem } from '@niwaki/hub';
import type { RunFolder } from './run-folder.ts';

/** A directory on the disk; made when first written to. */
export function diskFolder(directory: string): RunFolder {
  const {
    fs,
    path: { join, dirname },
  } = nodeFileSystem();
  const at = (path: string): string => join(directory, path);

  const put = async (path: string, bytes: Uint8Array, flag: 'w' | 'a'): Promise<void> => {
    await fs.mkdir(dirname(path), { recursive: true });
    const file = await fs.open(path, flag);
    try {
      await file.writeFile(bytes);
      // What a rename makes visible must be on the disk before it.
      if (flag === 'w') await file.sync();
    } finally {
      await file.close();
    }
  };
  const failed =
    (path: string) =>
    (cause: NodeJS.ErrnoException): never => {
      throw cannotWrite(path, cause);
    };
  /** The name of an entry is data of its directory. Some systems cannot sync one. */
  const syncDirectory = async (path: string): Promise<void> => {
    const handle = await fs.open(path, 'r').catch(() => undefined);
    await handle?.sync().catch(() => undefined);
    await handle?.close();
  };

  return {
    name: directory,
    inside: (path) => diskFolder(at(path)),
    list: () => fs.readdir(directory).catch(absent([])),
    read: async (path) => {
      const bytes = await fs.readFile(at(path)).catch(absent(undefined));
      // A plain view: `slice` of a Buffer would share its memory.
      return bytes && new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    },
    write: async (path, bytes) => {
      const part = `${at(path)}.part`;
      try {
        await put(part, bytes, 'w');
        await fs.rename(part, at(path));
      } catch (error) {
        await fs.rm(part, { force: true }).catch(() => undefined);
        failed(at(path))(error as NodeJS.ErrnoException);
      }
    },
    sink: async (path) => {
      await fs.mkdir(dirname(at(path)), { recursive: true }).catch(failed(at(path)));
      return fileSink(at(path));
    },
    append: (path, bytes) => put(at(path), bytes, 'a').catch(failed(at(path))),
    rename: async (from, to) => {
      await syncDirectory(at(from));
      await fs.rename(at(from), at(to));
      await syncDirectory(dirname(at(to)));
    },
    remove: (path) => fs.rm(at(path), { recursive: true, force: true }),
  };
}

const absent =
  <T>(value: T) =>
  (error: NodeJS.ErrnoException): T => {
    if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return value;
    throw error;
  };
