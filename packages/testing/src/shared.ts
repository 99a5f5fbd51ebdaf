import { existsSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

/** Reference files that live beside the repository; a plain clone does not have them, and the tests that need them say so and skip. */
const root = new URL('../../../../shared/', import.meta.url);

export const hasShared: boolean = existsSync(new URL('golden/README.md', root));
if (!hasShared) process.stderr.write('niwaki tests: no reference files beside the repository; golden tests are skipped.\n');

export const sharedPath = (path: string): string => new URL(path, root).pathname;
export const sharedJson = <T>(path: string): T => JSON.parse(readFileSync(new URL(path, root), 'utf8')) as T;
export const sharedBytes = (path: string): Uint8Array => new Uint8Array(readFileSync(new URL(path, root)));

const models = process.env['NIWAKI_MODELS'] ?? join(homedir(), '.cache/niwaki/models');
/** A real pretrained model's file, or undefined where it was not fetched. */
export function modelPath(path: string): string | undefined {
  const full = join(models, path);
  if (existsSync(full)) return full;
  process.stderr.write(`niwaki tests: ${path} is not on this machine; its tests are skipped.\n`);
  return undefined;
}
