import { ConfigError, contentHash, deviceCopy, hostCopy, StateError, type Parameter, type RawTensor } from '@niwaki/tensor';
import { inputFrom, recordOfInput, recordOfWeight, weightFrom, type InputRecord, type WeightRecord } from '@niwaki/weights';
import type { Model, Point, Site } from '@niwaki/nn';
import { calibrationHash } from '../base-changes.ts';
import type { Made, Method, Plan } from '../method.ts';
import type { Calibrate } from './calibrate.ts';
import type { Lends } from './lends.ts';

/** What must be the same for the rest of a walk to be the rest of that walk. */
export interface WalkIdentity {
  /** Recipe of the method. */
  readonly method: string;
  /** How many sites are selected, and a name for them and their shapes. */
  readonly sites: string;
  /** Names the batches. */
  readonly calibration: string;
  readonly windows: number;
}

/** What a site holds, as data. */
export interface SiteRecord {
  readonly weight?: WeightRecord;
  readonly input?: InputRecord;
}

/**
 * What one window left behind. With the model as it was loaded and the windows before, it is all that the next one starts
 * from: activations are computed again, and what is drawn has an address.
 */
export interface WindowRecord {
  /** Put for good in this window, by site. */
  readonly put: Readonly<Record<string, SiteRecord>>;
  /** Other parameters that were written in it, by path: norms and biases that factors went into. */
  readonly changed: Readonly<Record<string, RawTensor>>;
  /** What stands in for a while, by site; of the last window alone. */
  readonly lent: Readonly<Record<string, SiteRecord>>;
}

/** Where a walk keeps what its windows left, to go on from after a stop. */
export interface WalkCheckpoint {
  /** Called once, before anything is changed. @returns how many windows of this walk are kept. @throws where others' are */
  begin(walk: WalkIdentity): Promise<number>;
  /** Of a window that is kept, from 0; of all but the last without what is lent. */
  read(window: number): Promise<WindowRecord>;
  /** The window is finished once this resolves. */
  write(window: number, record: WindowRecord): Promise<void>;
}

/** Writes down what the windows of a walk do, and does it again. */
export interface Recorder {
  /** Windows that are kept, and need not be walked. */
  readonly done: number;
  /** Notes what is put at a site. */
  note(site: Site, made: Made): void;
  /** Brings the model to where the kept windows left it. */
  restore(): Promise<void>;
  /** After each window. */
  keep(window: number): Promise<void>;
}

interface RecorderContext {
  readonly model: Model;
  readonly sites: readonly Site[];
  readonly windows: number;
  readonly lends: Lends;
  put(site: Site, made: Made): void;
}

const unrecorded: Recorder = { done: 0, note: () => {}, restore: async () => {}, keep: async () => {} };

export async function createRecorder<P extends Plan>(
  method: Pick<Method<P>, 'kind' | 'toJSON'>,
  { checkpoint, batches, from }: Pick<Calibrate, 'checkpoint' | 'batches' | 'from'>,
  { model, sites, windows, lends, put }: RecorderContext,
): Promise<Recorder> {
  if (checkpoint === undefined) return unrecorded;
  if (from !== undefined) {
    throw new ConfigError(`${method.kind}: a walk goes on from where its checkpoint ends, and was told to go on from '${from}'`, {
      from,
      help: 'Leave `from` away, or the checkpoint.',
    });
  }
  const done = await checkpoint.begin({
    method: JSON.stringify(method),
    sites: named(sites),
    calibration: await calibrationHash(batches),
    windows,
  });
  const placeAt = new Map(model.sites(() => true, { points }).map((site) => [site.path, site]));
  const versions = versionsOf(model);
  const noted = new Map<Site, Made>();
  return {
    done,
    note: (site, made) => void noted.set(site, { ...noted.get(site), ...made }),
    restore: async () => {
      for (let window = 0; window < done; window++) {
        const record = await checkpoint.read(window);
        const undo = await writeChanged(model, record.changed);
        for (const [i, [path, { weight, input }]] of Object.entries(record.put).entries()) {
          put(placeAt.get(path)!, {
            ...(weight && { weight: weightFrom(path, weight) }),
            ...(input && { input: inputFrom(path, input) }),
            ...(i === 0 && { undo }),
          });
        }
        if (window === done - 1) lendAgain(record, placeAt, lends);
      }
      for (const [parameter, version] of versionsOf(model)) versions.set(parameter, version);
    },
    keep: async (window) => {
      const put: Record<string, SiteRecord> = {};
      for (const [{ path }, { weight, input }] of noted) {
        put[path] = { ...(weight && { weight: await recordOfWeight(weight) }), ...(input && { input: await recordOfInput(input) }) };
      }
      const lent: Record<string, SiteRecord> = {};
      const held = lends.held();
      for (const { site, weight, input } of held) {
        lent[site.path] = {
          ...(weight && { weight: await recordOfWeight(weight.lent, weight.stored) }),
          ...(input && { input: await recordOfInput(input) }),
        };
      }
      const recorded = [...sites, ...held.map(({ site }) => site)];
      await checkpoint.write(window, { put, changed: await changedSince(model, versions, recorded), lent });
      noted.clear();
    },
  };
}

function named(sites: readonly Site[]): string {
  const hash = contentHash();
  for (const { path, weight } of sites) hash.text(`${path} [${weight?.shape.join() ?? ''}]`);
  return `${sites.length} (${hash.digest()})`;
}

/** Where something may be put or lent: what multiplies rows. */
const points: readonly Point[] = ['linear', 'conv', 'embedding', 'head', 'operand'];

const versionsOf = (model: Model): Map<Parameter, number> =>
  new Map([...model.parameters().values()].map((parameter) => [parameter, parameter.version]));

/** Copies of what was written since then and belongs to none of these sites; the versions become those of now. */
async function changedSince(model: Model, versions: Map<Parameter, number>, recorded: readonly Site[]): Promise<Record<string, RawTensor>> {
  const own = new Set(
    recorded.flatMap(({ weight, input }) => [...Object.values(weight?.parts ?? {}), ...Object.values(input?.parts ?? {})]),
  );
  const changed: Record<string, RawTensor> = {};
  for (const [parameter, version] of versionsOf(model)) {
    const before = versions.get(parameter);
    versions.set(parameter, version);
    if (before !== undefined && before !== version && !own.has(parameter) && parameter.stored === undefined)
      changed[parameter.path] = await hostCopy(parameter.read());
  }
  return changed;
}

/** @returns what writes the old values again */
async function writeChanged(model: Model, changed: WindowRecord['changed']): Promise<() => void> {
  const parameters = model.parameters();
  const before = new Map<Parameter, RawTensor>();
  for (const [path, raw] of Object.entries(changed)) {
    const parameter = parameters.get(path);
    if (parameter === undefined) {
      throw new StateError(`the walk that is kept changed '${path}', which this model does not have`, {
        path,
        help: 'Load the model that the walk began on, with what was on it.',
      });
    }
    before.set(parameter, await hostCopy(parameter.read()));
    parameter.write(deviceCopy(raw));
  }
  return () => {
    for (const [parameter, raw] of before) parameter.write(deviceCopy(raw));
  };
}

function lendAgain({ lent }: WindowRecord, placeAt: ReadonlyMap<string, Site>, lends: Lends): void {
  for (const [path, { weight, input }] of Object.entries(lent)) {
    const site = placeAt.get(path)!;
    if (weight !== undefined) lends.lend(site, weightFrom(path, weight, site.weight));
    if (input !== undefined) lends.lendInput(site, inputFrom(path, input));
  }
}
