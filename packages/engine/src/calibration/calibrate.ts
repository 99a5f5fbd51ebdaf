import { ConfigError, dispose, NotFoundError, throwIfAborted } from '@niwaki/tensor';
import type { Batch } from '@niwaki/weights';
import type { Carry, Model, Site, Stage } from '@niwaki/nn';
import { createBreath } from '../breath.ts';
import type { Made, Method, Plan } from '../method.ts';
import type { FitProgress } from './fit.ts';
import { createRecorder, type Recorder, type WalkCheckpoint } from './checkpoint.ts';
import { createLends } from './lends.ts';
import { calibrationBatches, runStages, type CalibrationBatch } from './streams.ts';
import { openWindow } from './window.ts';

/** How a method goes over the blocks of a model. */
export interface Walk {
  /** Blocks of a window; default 1. */
  readonly width?: number;
  /** Blocks from one window to the next, at most `width`, which is the default. */
  readonly stride?: number;
  /**
   * What enters the next window: 'current' (default) the outputs of the blocks as they are now, 'float' those of before
   * they were replaced, 'both' the first as inputs, and what the float model gives behind the window beside them.
   * Activations are f32 on the device, rows · width · 4 bytes over all batches: once with 'current', twice with 'float',
   * up to three times with 'both'.
   */
  readonly advance?: 'current' | 'float' | 'both';
}

/** Data to calibrate with. */
export interface Calibrate {
  /** Token batches, the caller's to dispose. All rows but padding count. */
  readonly batches: readonly Batch[];
  /**
   * Path of the block to go on from (`model.layers.3`): blocks before it are run as they are, their sites left alone.
   * A walk that was stopped and goes on at the next block gives what one without a stop gives.
   */
  readonly from?: string;
  /**
   * Where the walk keeps what each window left, and goes on from after a stop: with the model as it was loaded, it gives
   * what a walk without a stop gives, bit for bit, however windows overlap. In place of `from`.
   */
  readonly checkpoint?: WalkCheckpoint;
  /** The model in float, where `model` holds replaced blocks already; needed to go on with 'float' and 'both'. */
  readonly reference?: Model;
  readonly onBlock?: (progress: BlockProgress) => void;
  /** After each step of a method that fits its blocks. */
  readonly onFit?: (progress: FitProgress) => void;
}

export interface BlockProgress {
  /** Windows finished. */
  readonly done: number;
  readonly total: number;
  /** Path of the last block just finished, and of the one to go on from after it. */
  readonly path: string;
  readonly next?: string;
  /** Bytes of activations held for the blocks to come. */
  readonly bytes: number;
}

/** What the driver needs of a method and its host. */
export interface CalibrationJob<P extends Plan> {
  readonly model: Model;
  readonly method: Method<P>;
  readonly sites: readonly Site[];
  readonly plan: P;
  readonly calibrate: Calibrate;
  readonly signal?: AbortSignal;
  put(site: Site, made: Made): void;
}

/**
 * Streams batches through a model block by block and lets a method replace the weights of one window after another. The
 * activations that enter the window are on the device for all batches; every other one lives for one block of one batch.
 */
export async function calibrate<P extends Plan>(job: CalibrationJob<P>): Promise<void> {
  const { model, method, sites, signal } = job;
  const { reference, onBlock } = job.calibrate;
  const put: typeof job.put = (site, made) => {
    job.put(site, made);
    recorder.note(site, made);
  };
  const stages = model.stages();
  const advance = method.walk?.advance ?? 'current';
  const windows = windowsOf(stages, sites, method);
  checkData(job, advance);
  const { batches, dispose: disposeMasks } = await calibrationBatches(job.calibrate.batches);
  const floatStages = (reference ?? model).stages();
  const lends = createLends(model);
  let inputs: Carry[] = [];
  /** The float model's streams, and the stage they enter. */
  let floats: Carry[] = [];
  let reached = windows[0]!.range[0];
  let ahead: Carry[] = [];
  let recorder: Recorder;
  const run = (over: readonly Stage[], range: readonly [number, number], carries: readonly Carry[]): Promise<Carry[]> =>
    runAll(over, range, { carries, batches, kind: method.kind, ...(signal && { signal }) });
  const runFloats = async (to: number): Promise<Carry[]> => run(floatStages, [reached, to], floats);
  try {
    recorder = await createRecorder(method, job.calibrate, { model, sites, windows: windows.length, lends, put: job.put });
    const { done } = recorder;
    const nothing = batches.map((): Carry => ({}));
    const start = windows[done]?.range[0];
    // The float streams first: what is kept of earlier windows ends the float model.
    if (start !== undefined && advance === 'float') inputs = await run(floatStages, [0, start], nothing);
    if (start !== undefined && advance === 'both') {
      reached = done === 0 ? start : windows[done - 1]!.range[1];
      floats = await run(floatStages, [0, reached], nothing);
    }
    await recorder.restore();
    if (start !== undefined && advance !== 'float') inputs = await run(stages, [0, start], nothing);
    for (const [w, { range, sites: inside }] of windows.entries()) {
      if (w < done) continue;
      throwIfAborted(signal, method.kind);
      const next = windows[w + 1]?.range[0];
      const to = next ?? range[1];
      // Before anything is replaced: afterwards the float outputs of this window cannot be had.
      if (advance === 'float' && next !== undefined) ahead = await run(floatStages, [range[0], to], inputs);
      if (advance === 'both') {
        // Blocks without selected sites lie between the last window and this one.
        if (reached < range[0]) [floats, reached] = [swap(floats, await runFloats(range[0])), range[0]];
        ahead = await runFloats(range[1]);
        // Behind a window that overlaps, the float streams are further on than what enters the next.
        if (reached > range[0]) floats = swap(floats, []);
      }
      const leaving = new Set(inside.filter((site) => !stages.slice(to).some((stage) => stage.sites.includes(site))));
      await visitWindow(
        { ...job, put },
        {
          range,
          sites: inside,
          leaving,
          lends,
          batches,
          inputs,
          ...(advance === 'both' && { targets: ahead, ...(floats.length > 0 && { floatInputs: floats }) }),
        },
      );
      if (next !== undefined) {
        if (advance === 'float') [inputs, ahead] = [swap(inputs, ahead), []];
        else inputs = swap(inputs, await run(stages, [range[0], next], inputs));
        if (advance === 'both') [floats, ahead, reached] = [swap(floats, ahead), [], range[1]];
      }
      await recorder.keep(w);
      onBlock?.({
        done: w + 1,
        total: windows.length,
        path: stages[to - 1]!.path,
        ...(to < stages.length ? { next: stages[to]!.path } : {}),
        bytes: bytesOf([...inputs, ...floats]),
      });
    }
  } finally {
    lends.dispose();
    for (const carries of [inputs, floats, ahead]) carries.forEach(disposeCarry);
    disposeMasks();
  }
}

/** The method's part of one window: its own visit, or statistics once and then site by site. */
async function visitWindow<P extends Plan>(
  { model, method, plan, put, signal, calibrate: { onFit } }: CalibrationJob<P>,
  context: Pick<
    Parameters<typeof openWindow>[0],
    'range' | 'sites' | 'leaving' | 'lends' | 'batches' | 'inputs' | 'floatInputs' | 'targets'
  >,
): Promise<void> {
  const { window, close } = openWindow({
    ...context,
    model,
    replace: put,
    kind: method.kind,
    ...(signal && { signal }),
    ...(onFit && { onFit }),
  });
  try {
    if (method.visit !== undefined) return await method.visit(window, plan);
    const statistics = await window.collect(context.sites, method.collect ?? {});
    for (const site of context.sites) {
      throwIfAborted(signal, method.kind);
      window.replace(site, await method.make(site, plan, statistics.get(site)));
    }
  } finally {
    close();
  }
}

interface Stretch {
  readonly range: readonly [from: number, to: number];
  readonly sites: readonly Site[];
}

/** Windows from the first block with a selected site to the last one; those without any are left out. */
function windowsOf<P extends Plan>(stages: readonly Stage[], sites: readonly Site[], { kind, walk }: Method<P>): readonly Stretch[] {
  const { width = 1, stride = width } = walk ?? {};
  if (!(Number.isInteger(width) && width >= 1))
    throw new ConfigError(`${kind}: width must be a whole number from 1, got ${width}`, { width });
  if (!(Number.isInteger(stride) && stride >= 1 && stride <= width)) {
    throw new ConfigError(`${kind}: stride must be a whole number from 1 to the width ${width}, got ${stride}`, { stride, width });
  }
  const selected = new Set(sites);
  const inside = (stage: Stage): readonly Site[] => stage.sites.filter((site) => selected.has(site));
  const last = stages.reduce((found, stage, s) => (inside(stage).length > 0 ? s : found), -1);
  const windows: Stretch[] = [];
  for (let from = stages.findIndex((stage) => inside(stage).length > 0); from <= last; from += stride) {
    const to = Math.min(from + width, last + 1);
    const own = stages.slice(from, to).flatMap(inside);
    if (own.length > 0) windows.push({ range: [from, to], sites: own });
    if (to === last + 1) break;
  }
  return windows;
}

/** Selected sites from a block on. @throws NotFoundError for a path that is no stage */
export function sitesFrom(model: Model, sites: readonly Site[], from: string): readonly Site[] {
  const stages = model.stages();
  const start = stages.findIndex(({ path }) => path === from);
  if (start < 0) {
    const paths = stages.map(({ path }) => path);
    throw new NotFoundError(`no stage is called '${from}'`, { from, stages: paths, help: `The stages are ${paths.join(', ')}.` });
  }
  const after = new Set(stages.slice(start).flatMap((stage) => stage.sites));
  const left = sites.filter((site) => after.has(site));
  if (left.length > 0) return left;
  throw new ConfigError(`no selected site lies in '${from}' or after it`, { from });
}

function checkData<P extends Plan>({ method, calibrate: { batches, from, reference } }: CalibrationJob<P>, advance: string): void {
  const { kind, walk } = method;
  if (batches.length === 0) throw new ConfigError(`${kind}: calibration needs at least one batch`, { batches: 0 });
  // With 'both' the float streams run ahead of what is replaced, whatever overlaps.
  const overlapping = advance === 'float' && walk?.stride !== undefined && walk.stride < (walk.width ?? 1);
  if (advance === 'current' || reference !== undefined || (from === undefined && !overlapping)) return;
  throw new ConfigError(`${kind} follows the float model, whose weights are gone from blocks that were replaced`, {
    from,
    help: 'Pass the float model as calibrate.reference.',
  });
}

async function runAll(
  stages: readonly Stage[],
  range: readonly [number, number],
  {
    carries,
    batches,
    kind,
    signal,
  }: {
    readonly carries: readonly Carry[];
    readonly batches: readonly CalibrationBatch[];
    readonly kind: string;
    readonly signal?: AbortSignal;
  },
): Promise<Carry[]> {
  const breath = createBreath();
  const out: Carry[] = [];
  try {
    for (const [b, carry] of carries.entries()) {
      throwIfAborted(signal, kind);
      out.push(runStages(stages, range, carry, batches[b]!.call));
      await breath();
    }
    return out;
  } catch (error) {
    out.forEach(disposeCarry);
    throw error;
  }
}

function swap(old: readonly Carry[], next: Carry[]): Carry[] {
  old.forEach(disposeCarry);
  return next;
}

const disposeCarry = (carry: Carry): void => dispose(Object.values(carry));

const bytesOf = (carries: readonly Carry[]): number =>
  carries.reduce((sum, carry) => sum + Object.values(carry).reduce((total, tensor) => total + tensor.size * 4, 0), 0);
