import { DeviceError, throwIfAborted } from '@niwaki/tensor';
import { nodeFileSystem } from './node.ts';

/** Where a file is written, in order. What is there before `commit` is never seen by a reader. */
export interface ByteSink {
  readonly name: string;
  write(bytes: Uint8Array): Promise<void>;
  /** The file appears, whole. */
  commit(): Promise<void>;
  /** Nothing stays of what was written; what was there before is as it was. */
  abandon(): Promise<void>;
}

/** A sink that keeps the bytes; `bytes()` after commit. */
export function memorySink({ name = 'bytes' }: { name?: string } = {}): ByteSink & { bytes(): Uint8Array } {
  let pieces: Uint8Array[] = [];
  const bytes = (): Uint8Array => {
    if (pieces.length === 1) return pieces[0]!;
    const all = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.byteLength, 0));
    let at = 0;
    for (const piece of pieces) {
      all.set(piece, at);
      at += piece.byteLength;
    }
    pieces = [all];
    return all;
  };
  return {
    name,
    write: async (piece) => void pieces.push(new Uint8Array(piece)),
    commit: async () => {},
    abandon: async () => void (pieces = []),
    bytes,
  };
}

/** What the disk refused, and what to do. */
export function cannotWrite(file: string, cause: unknown): DeviceError {
  const code = (cause as { code?: string }).code;
  return new DeviceError(`'${file}' cannot be written (${code ?? String(cause)})`, {
    file,
    code,
    cause,
    help: remedies[code ?? ''] ?? remedy,
  });
}

const remedy = 'Check that the folder exists and may be written.';
const remedies: Readonly<Record<string, string>> = {
  ENOSPC: 'The disk is full: free some space.',
  EEXIST: 'A file stands where a folder has to be: name another folder.',
  ENOTDIR: 'A file stands where a folder has to be: name another folder.',
};

/**
 * A sink over a file on disk: a temporary sibling, renamed at the end, so that a reader (or a memory map) of the old
 * file never sees half of the new one. Throws DeviceError where the disk is full or the folder cannot be written.
 */
export async function fileSink(file: string): Promise<ByteSink> {
  const { fs } = nodeFileSystem();
  const temporary = `${file}.${crypto.randomUUID().slice(0, 8)}.part`;
  const failed = (cause: unknown): never => {
    throw cannotWrite(file, cause);
  };
  const handle = await fs.open(temporary, 'wx').catch(failed);
  let open = true;
  const close = async (): Promise<void> => {
    if (open) await handle.close();
    open = false;
  };
  return {
    name: file,
    write: async (bytes) => {
      let done = 0;
      while (done < bytes.byteLength) done += (await handle.write(bytes, done).catch(failed)).bytesWritten;
    },
    commit: async () => {
      await handle.sync().catch(failed);
      await close();
      await fs.rename(temporary, file).catch(failed);
    },
    abandon: async () => {
      await close();
      await fs.rm(temporary, { force: true });
    },
  };
}

/** A sink over a WritableStream, such as a browser's FileSystemWritableFileStream, which keeps the old file until closed. */
export function streamSink(stream: WritableStream<Uint8Array>, { name = 'stream' }: { name?: string } = {}): ByteSink {
  const writer = stream.getWriter();
  return { name, write: (bytes) => writer.write(bytes), commit: () => writer.close(), abandon: () => writer.abort().catch(() => {}) };
}

/** Runs a writer over a sink: commit at the end, abandon on any failure or abort. */
export async function writeThrough(sink: ByteSink, signal: AbortSignal | undefined, pieces: AsyncIterable<Uint8Array>): Promise<void> {
  try {
    for await (const piece of pieces) {
      throwIfAborted(signal, `writing ${sink.name}`);
      await sink.write(piece);
    }
    throwIfAborted(signal, `writing ${sink.name}`);
    await sink.commit();
  } catch (error) {
    await sink.abandon();
    throw error;
  }
}
