import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { AbortError, FormatError, NotFoundError } from '@niwaki/tensor';
import { afterEach, describe, expect, test } from 'vitest';
import {
  blobSource,
  fileSource,
  memorySource,
  mostWholeBytes,
  nodeFolder,
  resolveSource,
  urlSource,
  type ByteSource,
} from '../src/index.ts';

const content = Uint8Array.from({ length: 1000 }, (_, i) => (i * 7) & 255);
const slice = (from: number, to: number): number[] => [...content.subarray(from, to)];

async function behavesLikeASource(source: ByteSource): Promise<true> {
  expect(source.size).toBe(1000);
  expect([...(await source.read(0, 3))]).toEqual(slice(0, 3));
  expect([...(await source.read(500, 500))]).toEqual(slice(500, 1000));
  expect((await source.read(1000, 0)).byteLength).toBe(0);
  await expect(source.read(999, 2)).rejects.toThrow(FormatError);
  await expect(source.read(-1, 2)).rejects.toThrow(FormatError);
  await expect(source.read(0, 1e18)).rejects.toThrow(FormatError);
  await expect(source.read(0, 1, { signal: AbortSignal.abort() })).rejects.toThrow(AbortError);
  return true;
}

test('memory, also inside a larger buffer', async () => {
  expect(await behavesLikeASource(memorySource(content))).toBe(true);
  const moved = new Uint8Array(1003);
  moved.set(content, 3);
  expect(await behavesLikeASource(memorySource(moved.subarray(3)))).toBe(true);
});

test('a Blob and a File', async () => {
  expect(await behavesLikeASource(blobSource(new Blob([content])))).toBe(true);
  expect(blobSource(new File([content], 'x.bin')).name).toBe('x.bin');
});

test('a file on disk', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'niwaki-'));
  const path = join(folder, 'x.bin');
  await writeFile(path, content);
  const source = await fileSource(path);
  expect(await behavesLikeASource(source)).toBe(true);
  await writeFile(path, content.subarray(0, 10));
  await expect(source.read(500, 10)).rejects.toThrow(/became shorter/);
  await source.close?.();
  await expect(fileSource(join(folder, 'none'))).rejects.toThrow(NotFoundError);
  await expect(fileSource(folder)).rejects.toThrow(NotFoundError);
  await rm(folder, { recursive: true });
});

test('a folder reads no file whole that is not small', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'niwaki-'));
  try {
    await writeFile(join(folder, 'config.json'), '{}');
    await truncate(join(folder, 'config.json'), mostWholeBytes + 1); // sparse: no such bytes on the disk
    await expect(nodeFolder(folder).bytes('config.json')).rejects.toThrow(/config\.json has 268435457 bytes, at most 268435456/);
    await truncate(join(folder, 'config.json'), 2);
    expect(new TextDecoder().decode(await nodeFolder(folder).bytes('config.json'))).toBe('{}');
  } finally {
    await rm(folder, { recursive: true });
  }
});

test('a file: address means the path it encodes', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'niwaki 100% '));
  try {
    const file = join(folder, 'a#b.gguf');
    await writeFile(file, content);
    const found = await resolveSource(pathToFileURL(file));
    if (found.kind !== 'file') throw new Error('a file was expected');
    expect(await behavesLikeASource(found.file)).toBe(true);
    await found.file.close?.();
  } finally {
    await rm(folder, { recursive: true });
  }
});

describe('a URL', () => {
  const servers: { close(): void }[] = [];
  afterEach(() => servers.splice(0).forEach((server) => server.close()));
  const serve = async (answer: (request: IncomingMessage, response: ServerResponse) => void): Promise<string> => {
    const server = createServer(answer);
    servers.push(server);
    await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}/x.bin`;
  };
  const ranged = (
    request: IncomingMessage,
    response: ServerResponse,
    of: Uint8Array = content,
    headers: Record<string, string> = {},
  ): void => {
    const [from, to] = /bytes=(\d+)-(\d+)/.exec(request.headers.range!)!.slice(1).map(Number) as [number, number];
    const part = of.subarray(from, to + 1);
    response.writeHead(206, { 'Content-Range': `bytes ${from}-${from + part.length - 1}/${of.length}`, ...headers });
    response.end(part);
  };

  test('that answers ranges is read by ranges, and small reads at the start ask once', async () => {
    const asked: string[] = [];
    const url = await serve((request, response) => {
      asked.push(request.headers.range!);
      ranged(request, response);
    });
    expect(await behavesLikeASource(await urlSource(url, { firstBytes: 64 }))).toBe(true);
    expect(asked).toEqual(['bytes=0-63', 'bytes=500-999']);
  });

  test('that ignores ranges is fetched once, whole', async () => {
    let requests = 0;
    const url = await serve((_, response) => {
      requests++;
      response.end(content);
    });
    expect(await behavesLikeASource(await urlSource(url))).toBe(true);
    expect(requests).toBe(1);
  });

  test('that hides Content-Range tells its length by HEAD', async () => {
    const url = await serve((request, response) => {
      if (request.method === 'HEAD') return void response.writeHead(200, { 'Content-Length': 1000 }).end();
      const [from, to] = /bytes=(\d+)-(\d+)/.exec(request.headers.range!)!.slice(1).map(Number) as [number, number];
      response.writeHead(206).end(content.subarray(from, to + 1));
    });
    expect(await behavesLikeASource(await urlSource(url, { firstBytes: 64 }))).toBe(true);
  });

  test('whose file changes, or which sends another part, is a FormatError', async () => {
    const longer = new Uint8Array(2000);
    let requests = 0;
    const changing = await serve((request, response) => ranged(request, response, requests++ === 0 ? content : longer));
    await expect((await urlSource(changing, { firstBytes: 64 })).read(500, 10)).rejects.toThrow(/changed on the server/);
    requests = 0;
    const stamped = await serve((request, response) => ranged(request, response, content, { ETag: `"${requests++}"` }));
    await expect((await urlSource(stamped, { firstBytes: 64 })).read(500, 10)).rejects.toThrow(/changed on the server/);
    requests = 0;
    const short = await serve((request, response) => {
      if (requests++ === 0) return ranged(request, response);
      response.writeHead(206, { 'Content-Range': 'bytes 500-504/1000' }).end(content.subarray(500, 505));
    });
    await expect((await urlSource(short, { firstBytes: 64 })).read(500, 10)).rejects.toThrow(/asked for 10 bytes at 500, got 5/);
  });

  test('that is missing, unreachable or empty says so', async () => {
    const missing = await serve((_, response) => void response.writeHead(404).end());
    await expect(urlSource(missing)).rejects.toThrow(/answered 404/);
    await expect(urlSource('http://127.0.0.1:1/x')).rejects.toThrow(NotFoundError);
    const empty = await serve((_, response) => void response.writeHead(416, { 'Content-Range': 'bytes */0' }).end());
    expect((await urlSource(empty)).size).toBe(0);
  });

  test('stops when its signal fires', async () => {
    const controller = new AbortController();
    const url = await serve(() => controller.abort());
    await expect(urlSource(url, { signal: controller.signal })).rejects.toThrow(AbortError);
  });
});
