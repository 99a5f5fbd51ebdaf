import { nodeFileSystem } from '@niwaki/hub';
import { UsageError } from './failure.ts';

/**
 * Refuses a folder that results could not be written to, before hours of work for them. Makes nothing.
 * @throws UsageError naming the file that stands there, or the folder that may not be written
 */
export async function checkOut(out: string): Promise<void> {
  const { fs, path } = nodeFileSystem();
  for (let at = path.resolve(out); ; at = path.dirname(at)) {
    const stat = await fs.stat(at).catch(() => undefined);
    if (stat === undefined && at !== path.dirname(at)) continue;
    if (stat?.isDirectory() !== true) {
      throw new UsageError(`--out: '${at}' is a file, and the results take a folder`, { out, at, help: 'Name another folder.' });
    }
    const writable = await fs.access(at, fs.constants.W_OK).then(
      () => true,
      () => false,
    );
    if (!writable) throw new UsageError(`--out: the folder '${at}' may not be written`, { out, at, help: 'Name another folder.' });
    return;
  }
}
