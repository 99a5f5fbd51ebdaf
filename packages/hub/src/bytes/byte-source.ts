import { FormatError, throwIfAborted } from '@niwaki/tensor';

export interface ReadOptions {
  readonly signal?: AbortSignal;
}

/** Bytes that are read by ranges and never whole: a file, a Blob, a URL, memory. */
export interface ByteSource {
  /** Shown in errors: file name, URL. */
  readonly name: string;
  /** Total bytes. */
  readonly size: number;
  /**
   * Exactly `length` bytes from `offset`; do not write into them, memory sources hand out views.
   * Throws FormatError past the end, AbortError once the signal fired.
   */
  read(offset: number, length: number, options?: ReadOptions): Promise<Uint8Array>;
  close?(): Promise<void>;
}

/** Every source calls this before it touches anything: offsets come from files that may be hostile. */
export function checkRange(source: { name: string; size: number }, offset: number, length: number, options: ReadOptions | undefined): void {
  throwIfAborted(options?.signal, `reading ${source.name}`);
  if (Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0 && offset + length <= source.size) return;
  throw new FormatError(`${source.name}: ${length} bytes at ${offset} are past the end of a file of ${source.size} bytes`, {
    file: source.name,
    offset,
    length,
    size: source.size,
    help: 'The file is cut off or damaged: fetch it again.',
  });
}

/** Far above any config, tokenizer or index: nothing larger is read whole, whatever a folder calls it. */
export const mostWholeBytes = 268_435_456;

/** @throws FormatError where a file of this size is no small file */
export function checkWhole(name: string, size: number): void {
  if (size <= mostWholeBytes) return;
  throw new FormatError(`${name} has ${size} bytes, at most ${mostWholeBytes} are read whole`, {
    file: name,
    size,
    most: mostWholeBytes,
    help: 'A config, index or tokenizer is never that large: is it the file that its name says?',
  });
}

/** A small file whole; closes it. Throws FormatError for one that is not small. */
export async function readWhole(source: ByteSource, options: ReadOptions = {}): Promise<Uint8Array> {
  try {
    checkWhole(source.name, source.size);
    return await source.read(0, source.size, options);
  } finally {
    await source.close?.();
  }
}

/** A source over bytes in memory. `read` returns views, no copies. */
export function memorySource(bytes: Uint8Array | ArrayBuffer, { name = 'bytes' }: { name?: string } = {}): ByteSource {
  // A plain view also of a Node Buffer, whose `slice` would share its memory.
  const all = bytes instanceof Uint8Array ? new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength) : new Uint8Array(bytes);
  const source: ByteSource = {
    name,
    size: all.byteLength,
    read: async (offset, length, options) => {
      checkRange(source, offset, length, options);
      return all.subarray(offset, offset + length);
    },
  };
  return source;
}

/** A source over a Blob or File: slices are read when asked for. */
export function blobSource(blob: Blob, { name }: { name?: string } = {}): ByteSource {
  const source: ByteSource = {
    name: name ?? ('name' in blob && typeof blob.name === 'string' ? blob.name : 'blob'),
    size: blob.size,
    read: async (offset, length, options) => {
      checkRange(source, offset, length, options);
      const bytes = new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer());
      throwIfAborted(options?.signal, `reading ${source.name}`);
      return bytes;
    },
  };
  return source;
}
