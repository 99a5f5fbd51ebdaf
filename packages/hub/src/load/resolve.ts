import { ConfigError, NotFoundError } from '@niwaki/tensor';
import { blobSource, memorySource, type ByteSource } from '../bytes/byte-source.ts';
import { filesFolder, nodeFolder, urlFolder, type Folder } from '../bytes/folder.ts';
import { fileSource, nodeFileSystem, pathOfUrl } from '../bytes/node.ts';
import { urlSource, type UrlOptions } from '../bytes/url.ts';

/**
 * A model's place: a folder or file on disk, a URL of either, a File or Blob, bytes, a list of Files, a `Folder`.
 */
export type Source = string | URL | Blob | ArrayBuffer | Uint8Array | readonly File[] | Folder;

/** Turns a name into a folder or a file; undefined: not mine. Asked before the built-in ways. */
export type Resolver = (source: string, options: UrlOptions) => Promise<Resolved | undefined>;

export type Resolved =
  | { readonly kind: 'folder'; readonly folder: Folder }
  /** `beside`: where config.json and the tokenizer's files may lie. */
  | { readonly kind: 'file'; readonly file: ByteSource; readonly beside?: Folder };

export interface ResolveOptions extends UrlOptions {
  readonly resolvers?: readonly Resolver[];
}

/** Throws NotFoundError where nothing is there, ConfigError for what cannot be a source here. */
export async function resolveSource(source: Source, options: ResolveOptions = {}): Promise<Resolved> {
  if (source instanceof URL) return resolveText(source.href, options);
  if (typeof source === 'string') return resolveText(source, options);
  if (source instanceof Blob) return { kind: 'file', file: blobSource(source) };
  if (source instanceof ArrayBuffer || source instanceof Uint8Array) return { kind: 'file', file: memorySource(source) };
  if (isFileList(source)) return resolveFiles(source);
  if (typeof source === 'object' && source !== null && 'open' in source) return { kind: 'folder', folder: source };
  throw new ConfigError('a model is loaded from a path, a URL, a File, a list of Files or bytes', { source });
}

const isFileList = (source: readonly File[] | Folder): source is readonly File[] => Array.isArray(source);
const isModelFile = (path: string): boolean => /\.(gguf|safetensors)$/i.test(path);

function resolveFiles(files: readonly File[]): Resolved {
  const folder = filesFolder(new Map(files.map((file) => [file.name, file])));
  const models = files.filter(({ name }) => name.toLowerCase().endsWith('.gguf'));
  return models.length === 1 ? { kind: 'file', file: blobSource(models[0]!), beside: folder } : { kind: 'folder', folder };
}

async function resolveText(source: string, options: ResolveOptions): Promise<Resolved> {
  for (const resolver of options.resolvers ?? []) {
    const found = await resolver(source, options);
    if (found !== undefined) return found;
  }
  if (/^https?:\/\//i.test(source)) {
    const { pathname } = new URL(source);
    if (!isModelFile(pathname)) return { kind: 'folder', folder: urlFolder(source, options) };
    const parent = new URL(source);
    parent.pathname = pathname.slice(0, pathname.lastIndexOf('/'));
    return { kind: 'file', file: await urlSource(source, options), beside: urlFolder(parent.href, options) };
  }
  return resolvePath(source.startsWith('file:') ? pathOfUrl(source) : source, options);
}

async function resolvePath(source: string, options: ResolveOptions): Promise<Resolved> {
  const { fs, path } = nodeFileSystem();
  const stat = await fs.stat(source).catch(() => undefined);
  if (stat?.isDirectory()) return { kind: 'folder', folder: nodeFolder(source, options) };
  if (stat?.isFile()) return { kind: 'file', file: await fileSource(source), beside: nodeFolder(path.dirname(source), options) };
  if (/^[\w.-]+\/[\w.-]+$/.test(source)) {
    throw new NotFoundError(`no file or folder '${source}', and models are not downloaded by their id yet`, {
      source,
      help: 'Download the files and pass their folder, or pass a URL.',
    });
  }
  throw new NotFoundError(`no file or folder '${source}'`, {
    source,
    help: `That is '${path.resolve(source)}' here. Pass a folder, a .gguf or .safetensors file, or a URL.`,
  });
}
