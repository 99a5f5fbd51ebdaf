import { AbortError, FormatError, NotFoundError, throwIfAborted } from '@niwaki/tensor';
import { checkRange, checkWhole, memorySource, type ByteSource, type ReadOptions } from './byte-source.ts';

export interface UrlOptions extends ReadOptions {
  /** Default the global `fetch`; give one to add headers. */
  readonly fetch?: (url: string, init: RequestInit) => Promise<Response>;
  /** Bytes of the first request, kept: most headers fit. Default 64 KiB. */
  readonly firstBytes?: number;
}

export const urlNames = ['fetch', 'firstBytes', 'signal'] as const;

/**
 * A source over HTTP range requests. A server that ignores ranges sends the whole file once, which then stays in memory.
 * Throws NotFoundError (404, no connection), FormatError (a wrong part, or a file that changed between requests).
 */
export async function urlSource(url: string, options: UrlOptions = {}): Promise<ByteSource> {
  const { fetch: get = (to, init) => fetch(to, init), firstBytes = 65_536, signal } = options;
  const request = (init: RequestInit, s: AbortSignal | undefined): Promise<Response> =>
    guarded(url, s, () => get(url, s ? { ...init, signal: s } : init));

  const first = await request({ headers: { Range: `bytes=0-${firstBytes - 1}` } }, signal);
  if (first.status === 416) return memorySource(new Uint8Array(0), { name: url });
  if (first.status === 200) return memorySource(await whole(url, first, signal), { name: url });
  if (first.status !== 206) throw unreachable(url, first.status);

  const stamp = first.headers.get('etag');
  const part = contentRange(first);
  const head = await body(url, first, signal);
  const size = part?.total ?? (await sizeByHead(url, request, signal));
  if ((part && part.from !== 0) || head.byteLength !== Math.min(firstBytes, size)) {
    throw new FormatError(`${url}: asked for the first ${firstBytes} of ${size} bytes and got ${head.byteLength}`, { url, size });
  }

  const source: ByteSource = {
    name: url,
    size,
    read: async (offset, length, readOptions) => {
      checkRange(source, offset, length, readOptions);
      if (length === 0 || offset + length <= head.byteLength) return head.subarray(offset, offset + length);
      const s = readOptions?.signal ?? signal;
      const response = await request({ headers: { Range: `bytes=${offset}-${offset + length - 1}` } }, s);
      if (response.status !== 206) throw unreachable(url, response.status);
      const got = contentRange(response);
      const other = stamp !== null && response.headers.get('etag') !== null && response.headers.get('etag') !== stamp;
      if (other || (got && got.total !== undefined && got.total !== size)) {
        throw new FormatError(`${url} changed on the server while it was read`, { url, size, total: got?.total });
      }
      const bytes = await body(url, response, s);
      if (bytes.byteLength !== length || (got && got.from !== offset)) {
        throw new FormatError(
          `${url}: asked for ${length} bytes at ${offset}, got ${bytes.byteLength} at ${got?.from ?? 'an unnamed place'}`,
          {
            url,
            offset,
            length,
            given: bytes.byteLength,
          },
        );
      }
      return bytes;
    },
  };
  return source;
}

/** A whole small file; undefined where the server says 404. Throws FormatError where it says that the file is not small. */
export async function fetchBytes(url: string, options: UrlOptions = {}): Promise<Uint8Array | undefined> {
  const { fetch: get = (to, init) => fetch(to, init), signal } = options;
  const response = await guarded(url, signal, () => get(url, signal ? { signal } : {}));
  if (response.status === 404) return undefined;
  if (!response.ok) throw unreachable(url, response.status);
  checkWhole(url, Number(response.headers.get('content-length') ?? 0));
  return whole(url, response, signal);
}

/** `bytes 0-99/1234`; browsers hide the header across origins unless the server exposes it. */
function contentRange(response: Response): { from: number; total: number | undefined } | undefined {
  const match = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(response.headers.get('content-range') ?? '');
  if (!match) return undefined;
  return { from: Number(match[1]), total: match[2] === '*' ? undefined : Number(match[2]) };
}

async function sizeByHead(
  url: string,
  request: (init: RequestInit, signal: AbortSignal | undefined) => Promise<Response>,
  signal: AbortSignal | undefined,
): Promise<number> {
  const response = await request({ method: 'HEAD' }, signal);
  const length = response.headers.get('content-length');
  if (response.ok && length !== null && /^\d+$/.test(length)) return Number(length);
  throw new FormatError(`${url}: the server does not say how long the file is`, {
    url,
    help: 'Let the server expose Content-Range (Access-Control-Expose-Headers), or download the file and pass it.',
  });
}

async function whole(url: string, response: Response, signal: AbortSignal | undefined): Promise<Uint8Array> {
  const bytes = await body(url, response, signal);
  const length = response.headers.get('content-length');
  // With a content encoding the length counts the compressed bytes.
  if (length !== null && !response.headers.get('content-encoding') && Number(length) !== bytes.byteLength) {
    throw new FormatError(`${url}: ${length} bytes were announced, ${bytes.byteLength} came`, {
      url,
      help: 'The download was cut off: try again.',
    });
  }
  return bytes;
}

const body = async (url: string, response: Response, signal: AbortSignal | undefined): Promise<Uint8Array> =>
  guarded(url, signal, async () => new Uint8Array(await response.arrayBuffer()));

/** Network failures and aborts as errors of ours. */
async function guarded<T>(url: string, signal: AbortSignal | undefined, run: () => Promise<T>): Promise<T> {
  throwIfAborted(signal, `reading ${url}`);
  try {
    return await run();
  } catch (cause) {
    if (signal?.aborted) throw new AbortError(`reading ${url} was aborted`, { cause });
    throw new NotFoundError(`${url} cannot be reached`, { url, cause, help: 'Check the address, the connection and, in a browser, CORS.' });
  }
}

const unreachable = (url: string, status: number): NotFoundError =>
  new NotFoundError(`${url} answered ${status}`, { url, status, help: 'Check the address and whether it needs a token.' });
