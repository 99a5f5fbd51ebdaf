import type * as fileSystem from 'node:fs/promises';
import type * as paths from 'node:path';
import { ConfigError, FormatError, NotFoundError, throwIfAborted } from '@niwaki/tensor';
import { checkRange, type ByteSource } from './byte-source.ts';

type FileSystem = typeof fileSystem;
type Path = typeof paths;

/** Node's file system, asked for at run time so that a browser bundle never sees the import. */
export function nodeFileSystem(): { fs: FileSystem; path: Path } {
  const builtin = typeof process === 'undefined' ? undefined : process.getBuiltinModule;
  if (builtin === undefined) {
    throw new ConfigError('paths of files need a file system, and there is none here', {
      help: 'In a browser pass a File, a Blob, an ArrayBuffer or a URL.',
    });
  }
  return { fs: builtin('node:fs/promises'), path: builtin('node:path') };
}

/** The path that a `file:` address means on this system. */
export function pathOfUrl(address: string | URL): string {
  nodeFileSystem();
  return process.getBuiltinModule('node:url').fileURLToPath(address);
}

/** A source over a file on disk, read at positions; call `close` when done. Throws NotFoundError. */
export async function fileSource(file: string): Promise<ByteSource> {
  const { fs } = nodeFileSystem();
  const handle = await fs.open(file, 'r').catch((cause: unknown) => {
    throw new NotFoundError(`no file '${file}' that can be read`, { file, cause });
  });
  const stat = await handle.stat();
  if (!stat.isFile()) {
    await handle.close();
    throw new NotFoundError(`'${file}' is not a file`, { file });
  }
  const source: ByteSource = {
    name: file,
    size: stat.size,
    read: async (offset, length, options) => {
      checkRange(source, offset, length, options);
      const bytes = new Uint8Array(length);
      let done = 0;
      while (done < length) {
        throwIfAborted(options?.signal, `reading ${file}`);
        const { bytesRead } = await handle.read(bytes, done, length - done, offset + done);
        if (bytesRead === 0) throw new FormatError(`${file} became shorter while it was read`, { file, offset, length });
        done += bytesRead;
      }
      return bytes;
    },
    close: () => handle.close(),
  };
  return source;
}
