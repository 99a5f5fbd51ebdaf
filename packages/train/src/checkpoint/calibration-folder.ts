import { checkOptions, FormatError, type RawTensor } from '@niwaki/tensor';
import { dtypeBits, encodeSafetensors, memorySource, openSafetensors } from '@niwaki/hub';
import type { WalkCheckpoint, WalkIdentity, WindowRecord } from '@niwaki/engine';
import * as v from 'valibot';
import { CheckpointError } from './checkpoint.ts';
import { diskFolder } from './disk-folder.ts';
import type { RunFolder } from './run-folder.ts';

export interface CalibrationFolderOptions {
  /** Go on from what the folder holds. Default false: begin anew, unless that would discard an unfinished walk. */
  readonly resume?: boolean;
}

const identity: v.GenericSchema<WalkIdentity> = v.object({
  method: v.string(),
  sites: v.string(),
  calibration: v.string(),
  windows: v.number(),
});
const schema: v.GenericSchema<{ version: 1; done: number; walk: WalkIdentity }> = v.object({
  version: v.literal(1),
  done: v.pipe(v.number(), v.integer(), v.minValue(0)),
  walk: identity,
});

const stateFile = 'walk.json';
const windowFile = (window: number): string => `window-${String(window).padStart(5, '0')}.safetensors`;
const lentFile = (window: number): string => `lent-${String(window).padStart(5, '0')}.safetensors`;

/**
 * Keeps what the windows of a calibrated method left, for `calibrate.checkpoint` of `quantize` and `prune`: a walk that is
 * stopped, or whose process ends, goes on after its last whole window, on the model as it was loaded, and gives what it
 * would have given. A file a window, as large as what the method makes of it; forms that are still being fitted (CBQ: 4
 * bytes an entry) are kept of the last window alone. A finished walk is put back without computing.
 * @param where a path on the disk (Node), or any folder
 * @throws CheckpointError where the folder holds another walk, or an unfinished one and `resume` is not set
 * @example await quantize(model, cbq(), { calibrate: { batches, checkpoint: calibrationFolder('./walk', { resume: true }) } });
 */
export function calibrationFolder(where: string | RunFolder, options: CalibrationFolderOptions = {}): WalkCheckpoint {
  checkOptions('calibrationFolder', options, ['resume']);
  const { resume = false } = options;
  const folder = typeof where === 'string' ? diskFolder(where) : where;
  let walk: WalkIdentity | undefined;
  const writeState = (done: number): Promise<void> =>
    folder.write(stateFile, new TextEncoder().encode(JSON.stringify({ version: 1, done, walk }, undefined, 1)));
  const readRecord = async (name: string): Promise<Partial<WindowRecord>> => {
    const bytes = await folder.read(name);
    if (bytes === undefined) throw broken(folder, name, 'it is missing');
    return decodeRecord(bytes, folder, name);
  };
  return {
    begin: async (now) => {
      walk = now;
      const state = await readState(folder);
      if (state === undefined || (!resume && state.done >= state.walk.windows)) {
        for (const name of await folder.list()) if (/^(?:window|lent)-\d+\.safetensors$/.test(name)) await folder.remove(name);
        await writeState(0);
        return 0;
      }
      if (!resume) {
        throw new CheckpointError(`${folder.name} holds a walk that stopped after window ${state.done} of ${state.walk.windows}`, {
          folder: folder.name,
          done: state.done,
          windows: state.walk.windows,
          help: 'Resume it, choose another folder, or remove this one to begin again.',
        });
      }
      refuseOther(state.walk, now, folder);
      return state.done;
    },
    read: async (window) => {
      const lent = (await folder.list()).includes(lentFile(window)) ? await readRecord(lentFile(window)) : {};
      return { put: {}, changed: {}, lent: {}, ...(await readRecord(windowFile(window))), ...lent };
    },
    write: async (window, { lent, ...rest }) => {
      try {
        await folder.write(windowFile(window), await encodeRecord(rest));
        if (Object.keys(lent).length > 0) await folder.write(lentFile(window), await encodeRecord({ lent }));
        // From here on the window is one of those that are kept.
        await writeState(window + 1);
        if (window > 0) await folder.remove(lentFile(window - 1));
      } catch (cause) {
        throw new CheckpointError(`window ${window + 1} could not be written to ${folder.name}: ${(cause as Error).message}`, {
          cause,
          folder: folder.name,
          window,
          help: 'Make room there or choose another folder; the windows written before are whole, and the walk can resume after them.',
        });
      }
    },
  };
}

async function readState(folder: RunFolder): Promise<v.InferOutput<typeof schema> | undefined> {
  const bytes = await folder.read(stateFile);
  if (bytes === undefined) return undefined;
  try {
    return v.parse(schema, JSON.parse(new TextDecoder().decode(bytes)));
  } catch (cause) {
    throw broken(folder, stateFile, `it is not what a walk writes: ${(cause as Error).message}`, cause);
  }
}

function refuseOther(kept: WalkIdentity, now: WalkIdentity, folder: RunFolder): void {
  const names = Object.keys(now) as (keyof WalkIdentity)[];
  const different = names.filter((name) => kept[name] !== now[name]);
  if (different.length === 0) return;
  const told = different.map((name) => `${name} was ${kept[name]}, is ${now[name]}`);
  throw new CheckpointError(`${folder.name} holds another walk: ${told.join('; ')}`, {
    folder: folder.name,
    kept,
    now,
    help: 'Resume with the method, the selection and the batches it was started with, or choose another folder.',
  });
}

const broken = (folder: RunFolder, file: string, what: string, cause?: unknown): FormatError =>
  new FormatError(`${folder.name}/${file}: ${what}`, {
    cause,
    folder: folder.name,
    file,
    help: 'Remove the folder to begin again.',
  });

/** The tree of a record as JSON in the header, its bytes as tensors under the path that they have in the tree. */
async function encodeRecord(record: Partial<WindowRecord>): Promise<Uint8Array> {
  const tensors = new Map<string, RawTensor>();
  const outline = taken(record, [], (name, raw) => tensors.set(name, storable(raw)));
  return encodeSafetensors(tensors, { metadata: { record: JSON.stringify(outline) }, cloneShared: true });
}

async function decodeRecord(bytes: Uint8Array, folder: RunFolder, name: string): Promise<Partial<WindowRecord>> {
  const file = await openSafetensors(memorySource(bytes, { name: `${folder.name}/${name}` }));
  const record = file.metadata.get('record');
  if (record === undefined) throw broken(folder, name, 'it is not what a walk writes');
  const values = new Map<string, Uint8Array>();
  for (const key of file.names()) values.set(key, (await file.read(key)).bytes);
  return given(JSON.parse(record), [], (key) => {
    const value = values.get(key);
    if (value !== undefined) return value;
    throw broken(folder, name, `the tensor '${key}' is missing`);
  }) as Partial<WindowRecord>;
}

const isTree = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null && !Array.isArray(value);
const isRaw = (tree: Record<string, unknown>): boolean => 'dtype' in tree && 'bytes' in tree;

/** A tree without its bytes. */
function taken(tree: unknown, path: readonly string[], take: (name: string, raw: RawTensor) => void): unknown {
  if (!isTree(tree)) return tree;
  if (!isRaw(tree)) return mapped(tree, (value, key) => taken(value, [...path, key], take));
  take(path.join(' '), tree as unknown as RawTensor);
  return { ...tree, bytes: 0 };
}

/** The same tree with its bytes. */
function given(tree: unknown, path: readonly string[], bytesOf: (name: string) => Uint8Array): unknown {
  if (!isTree(tree)) return tree;
  return isRaw(tree) ? { ...tree, bytes: bytesOf(path.join(' ')) } : mapped(tree, (value, key) => given(value, [...path, key], bytesOf));
}

const mapped = (tree: Record<string, unknown>, change: (value: unknown, key: string) => unknown): Record<string, unknown> =>
  Object.fromEntries(Object.entries(tree).map(([key, value]) => [key, change(value, key)]));

/** Under a type that the container knows, or as the bytes that it is. */
function storable(raw: RawTensor): RawTensor {
  const { dtype, shape, bytes } = raw;
  const bits = dtypeBits.get(dtype);
  const entries = shape.reduce((product, side) => product * side, 1);
  return bits !== undefined && entries * bits === 8 * bytes.length ? raw : { dtype: 'U8', shape: [bytes.length], bytes };
}
