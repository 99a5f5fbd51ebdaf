import { fileSource, pathOfUrl, readWhole, urlSource, type ByteSource, type Folder, type Resolver, type UrlOptions } from '@niwaki/hub';

// Each file is named in full: this is the form that bundlers for the browser follow and copy.
const tiny: Readonly<Record<string, URL>> = {
  'config.json': new URL('../models/niwaki-tiny/config.json', import.meta.url),
  'model.safetensors': new URL('../models/niwaki-tiny/model.safetensors', import.meta.url),
  'tokenizer.json': new URL('../models/niwaki-tiny/tokenizer.json', import.meta.url),
  'tokenizer_config.json': new URL('../models/niwaki-tiny/tokenizer_config.json', import.meta.url),
};

/** Models that come with the package: their files by name, as addresses that Node and pages can read. */
export const knownModels: ReadonlyMap<string, Readonly<Record<string, URL>>> = new Map([['niwaki-tiny', tiny]]);

/** Resolves the names of `knownModels`; `load` asks it first. */
export const knownModelResolver: Resolver = async (source, options) => {
  const files = knownModels.get(source);
  return files === undefined ? undefined : { kind: 'folder', folder: addressedFolder(source, files, options) };
};

/** Files that each have an address of their own, as after bundling. */
function addressedFolder(name: string, files: Readonly<Record<string, URL>>, options: UrlOptions): Folder {
  const open = async (file: string): Promise<ByteSource | undefined> => {
    const address = Object.hasOwn(files, file) ? files[file]! : undefined;
    if (address === undefined) return undefined;
    return address.protocol === 'file:' ? fileSource(pathOfUrl(address)) : urlSource(address.href, options);
  };
  return {
    name,
    open,
    bytes: async (file) => {
      const source = await open(file);
      return source && readWhole(source, options);
    },
  };
}
