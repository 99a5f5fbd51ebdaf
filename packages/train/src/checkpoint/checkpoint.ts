import { deviceCopy, FormatError, NiwakiError, type Json, type RawTensor, type Tensor } from '@niwaki/tensor';
import type { SavedState } from '@niwaki/engine';
import * as v from 'valibot';
import type { RunFolder } from './run-folder.ts';
import type { RunIdentity } from './run-identity.ts';
import { decodeTensors, encodeTensors } from './tensors.ts';

/** A checkpoint that cannot be written, or does not fit the run that wants to go on from it. */
export class CheckpointError extends NiwakiError {}

/** Where a run stands between two steps: plain numbers. */
export interface RunState {
  /** Steps tried: data, rates and noise follow it. */
  readonly attempt: number;
  /** Steps applied: bias correction follows it. */
  readonly updates: number;
  /** Refused steps: all of them, and those since the last applied one. */
  readonly refused: { readonly total: number; readonly running: number };
  /** Where the data goes on: both from 0. */
  readonly cursor: { readonly epoch: number; readonly step: number };
  /** Input tokens read so far. */
  readonly tokens: number;
  readonly run: RunIdentity;
  readonly recipe?: Json;
}

/** Optimizer state that is numbers, by parameter path. NaN and infinities as strings: JSON has none. */
type StateNumbers = Readonly<Record<string, Readonly<Record<string, number | string>>>>;
type StateFile = RunState & { readonly version: 2; readonly numbers: StateNumbers };

const natural: v.GenericSchema<number> = v.pipe(v.number(), v.integer(), v.minValue(0));
const json = v.record(v.string(), v.unknown());
const schema: v.GenericSchema<unknown, StateFile> = v.object({
  version: v.literal(2),
  attempt: natural,
  updates: natural,
  refused: v.object({ total: natural, running: natural }),
  cursor: v.object({ epoch: natural, step: natural }),
  tokens: natural,
  run: v.object({
    seed: v.string(),
    steps: natural,
    batchSize: natural,
    accumulate: natural,
    data: v.string(),
    base: v.array(json),
    adapters: json,
    model: v.string(),
    optimizer: json,
    participants: v.array(v.string()),
    schedule: json,
    objective: json,
    estimator: json,
  }),
  numbers: v.record(v.string(), v.record(v.string(), v.union([v.number(), v.picklist(['NaN', 'Infinity', '-Infinity'])]))),
  recipe: v.optional(v.unknown()),
}) as unknown as v.GenericSchema<unknown, StateFile>;

export interface Checkpoint {
  readonly state: RunState;
  /** Trained values by parameter path. */
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** Read from a file it is in host memory, until a step takes it over. */
  readonly optimizer: ReadonlyMap<string, SavedState>;
}

const prefix = 'checkpoint-';
const partial = 'partial-';
/** The state comes last by name, too: it says that the others are there. */
const files = { parameters: 'parameters.safetensors', optimizer: 'optimizer.safetensors', state: 'state.json' } as const;
/** Between a parameter's path and a state's name; neither holds a space. */
const joint = ' ';

/**
 * Writes a checkpoint beside the older ones, then removes all but the newest `keep`. It becomes visible in one rename,
 * so a process killed at any moment leaves either the old set or the new one.
 * Host memory: one copy of the trained values and of the optimizer state.
 * @returns the checkpoint's name inside the folder
 * @throws CheckpointError when the folder cannot be written (a full disk); what was there before is untouched
 */
export async function saveCheckpoint(
  folder: RunFolder,
  { state, parameters, optimizer }: Checkpoint,
  { keep }: { keep: number },
): Promise<string> {
  const name = `${prefix}${String(state.attempt).padStart(8, '0')}`;
  const draft = `${partial}${name}`;
  const tensors = new Map<string, Tensor | RawTensor>();
  const numbers: Record<string, Record<string, number | string>> = {};
  for (const [path, values] of optimizer) {
    for (const [key, value] of Object.entries(values)) {
      if (typeof value !== 'number') tensors.set(path + joint + key, value);
      else (numbers[path] ??= {})[key] = Number.isFinite(value) ? value : String(value);
    }
  }
  try {
    await folder.remove(draft);
    await folder.write(`${draft}/${files.parameters}`, await encodeTensors(parameters));
    await folder.write(`${draft}/${files.optimizer}`, await encodeTensors(tensors));
    const text = JSON.stringify({ version: 2, ...state, numbers }, undefined, 1);
    await folder.write(`${draft}/${files.state}`, new TextEncoder().encode(text));
    // The same step saved twice (a run that resumed and stopped at once) is the same content.
    await folder.remove(name);
    await folder.rename(draft, name);
  } catch (cause) {
    await folder.remove(draft).catch(() => undefined);
    throw new CheckpointError(
      `the checkpoint of step ${state.attempt} could not be written to ${folder.name}: ${(cause as Error).message}`,
      {
        cause,
        folder: folder.name,
        attempt: state.attempt,
        help: 'Make room there or choose another folder; the checkpoints written before are whole, and the run can resume from the newest.',
      },
    );
  }
  const names = await checkpointNames(folder);
  for (const old of names.slice(0, Math.max(0, names.length - keep))) await folder.remove(old);
  return name;
}

/** Whole checkpoints of a folder, oldest first: those that have their last file. */
export async function checkpointNames(folder: RunFolder): Promise<string[]> {
  const names = (await folder.list()).filter((name) => /^checkpoint-\d+$/.test(name));
  const whole: string[] = [];
  for (const name of names) if ((await folder.inside(name).list()).includes(files.state)) whole.push(name);
  return whole.sort((a, b) => Number(a.slice(prefix.length)) - Number(b.slice(prefix.length)));
}

/** What the newest checkpoint says of its run, without its tensors. */
export async function newestState(folder: RunFolder): Promise<RunState | undefined> {
  const name = (await checkpointNames(folder)).at(-1);
  if (name === undefined) return undefined;
  const bytes = await folder.read(`${name}/${files.state}`);
  if (bytes === undefined) throw broken(folder, name, `${files.state} is missing`);
  return parseState(bytes, folder, name).state;
}

/** Drafts that a killed process left behind. */
export async function removeDrafts(folder: RunFolder): Promise<void> {
  for (const name of await folder.list()) if (name.startsWith(partial)) await folder.remove(name);
}

/**
 * The newest checkpoint of a folder, or undefined where there is none; the caller owns the tensors of the parameters.
 * @throws FormatError where a file of it is missing or is not what it should be
 */
export async function loadCheckpoint(folder: RunFolder): Promise<Checkpoint | undefined> {
  const name = (await checkpointNames(folder)).at(-1);
  if (name === undefined) return undefined;
  const read = async (file: string): Promise<Uint8Array> => {
    const bytes = await folder.read(`${name}/${file}`);
    if (bytes !== undefined) return bytes;
    throw broken(folder, name, `${file} is missing`);
  };
  const { numbers, state } = parseState(await read(files.state), folder, name);
  const parameters = await decodeTensors(await read(files.parameters), `${name}/${files.parameters}`);
  const flat = await decodeTensors(await read(files.optimizer), `${name}/${files.optimizer}`);
  const optimizer = new Map<string, Record<string, RawTensor | number>>();
  const at = (path: string): Record<string, RawTensor | number> => {
    if (!optimizer.has(path)) optimizer.set(path, {});
    return optimizer.get(path)!;
  };
  for (const [path, values] of Object.entries(numbers)) for (const [key, value] of Object.entries(values)) at(path)[key] = Number(value);
  for (const [key, value] of flat) {
    const [path, ...rest] = key.split(joint);
    at(path!)[rest.join(joint)] = value;
  }
  return { state, parameters: new Map([...parameters].map(([path, raw]) => [path, deviceCopy(raw)])), optimizer };
}

function parseState(bytes: Uint8Array, folder: RunFolder, name: string): { state: RunState; numbers: StateNumbers } {
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder().decode(bytes));
  } catch (cause) {
    throw broken(folder, name, `${files.state} is not JSON`, cause);
  }
  const parsed = v.safeParse(schema, json);
  if (!parsed.success) {
    const issue = parsed.issues[0];
    throw broken(folder, name, `${files.state}: ${v.getDotPath(issue) ?? 'state'}: ${issue.message}`);
  }
  const { version: _version, numbers, ...state } = parsed.output;
  return { numbers, state };
}

const broken = (folder: RunFolder, name: string, what: string, cause?: unknown): FormatError =>
  new FormatError(`${folder.name}/${name}: ${what}`, {
    cause,
    folder: folder.name,
    checkpoint: name,
    help: `Remove ${name} to go on from the one before it.`,
  });
