import { ConfigError, dispose, keep, StateError, throwIfAborted, type Tensor } from '@niwaki/tensor';
import type { ActivationQuantizer, Weight } from '@niwaki/weights';
import type { Carry, Model, Site, Stage } from '@niwaki/nn';
import { createBreath } from '../breath.ts';
import type { Made } from '../method.ts';
import type { Collected, Collectors, CollectorState } from './collector.ts';
import { fitWindow, type Fit, type FitProgress } from './fit.ts';
import type { Lends } from './lends.ts';
import { rowsOf, runStages, type CalibrationBatch } from './streams.ts';
import { inputGroups, watchInputs, type InputGroup } from './watch.ts';

/** What a window gives for one batch; the tensors live until the visitor's promise settles. */
export interface Replayed {
  /** Streams that leave the window, with all replacements so far. */
  readonly output: Carry;
  /** The same streams of the float model, where the walk keeps both. */
  readonly target?: Carry;
  readonly index: number;
}

/** A few consecutive blocks of a model, with the calibration data that enters them. */
export interface Window {
  readonly stages: readonly Stage[];
  /** Selected sites by distinct input, in the order they run. */
  readonly groups: readonly (readonly Site[])[];
  /** Those of its sites that no later window has: what is not replaced now stays as it is. */
  readonly leaving: ReadonlySet<Site>;
  /**
   * Statistics of the inputs of sites, with all replacements so far: one pass over the batches, each distinct input taken
   * once. Results live until the window ends. `of: 'float'` feeds what the float model gives instead (`advance: 'both'`).
   */
  collect<C extends Collectors>(
    sites: readonly Site[],
    collectors: C,
    options?: { readonly of?: 'inputs' | 'float' },
  ): Promise<ReadonlyMap<Site, Collected<C>>>;
  /** Puts what was made at a site of the window; the driver owns it from now on. Ends what was lent there. */
  replace(site: Site, made: Made): void;
  /**
   * Lets a weight stand in at a site, in this window and in later ones that share its block, until the site is replaced
   * or the walk ends. The stored one stays beside it, and the model has it back however the walk ends. The driver's to free.
   */
  lend(site: Site, weight: Weight): void;
  /** What stands in at a site now. */
  lent(site: Site): Weight | undefined;
  /** The same for what rounds a site's input. It may be put there for good. */
  lendInput(site: Site, input: ActivationQuantizer): void;
  lentInput(site: Site): ActivationQuantizer | undefined;
  /** Optimizes parameters of the window's stages, so that what leaves it comes near to what left the float model (`advance: 'both'`). */
  fit(fit: Fit): Promise<void>;
  /** Runs the window over every batch, in order. */
  replay(visit: (pass: Replayed) => void | Promise<void>): Promise<void>;
}

export interface WindowContext {
  readonly model: Model;
  readonly range: readonly [from: number, to: number];
  readonly sites: readonly Site[];
  readonly batches: readonly CalibrationBatch[];
  /** One carry a batch; the driver's. */
  readonly inputs: readonly Carry[];
  readonly floatInputs?: readonly Carry[];
  readonly targets?: readonly Carry[];
  readonly leaving: ReadonlySet<Site>;
  readonly lends: Lends;
  readonly replace: (site: Site, made: Made) => void;
  readonly signal?: AbortSignal;
  readonly onFit?: (progress: FitProgress) => void;
  readonly kind: string;
}

/** A window and what frees the results it gave. */
export function openWindow(context: WindowContext): { readonly window: Window; close(): void } {
  const { model, range, batches, inputs, floatInputs, targets, lends, signal, onFit, kind } = context;
  const stages = model.stages();
  const results: (() => void)[] = [];
  const breath = createBreath();

  const collect: Window['collect'] = async (sites, collectors, { of = 'inputs' } = {}) => {
    if (of === 'float' && floatInputs === undefined) {
      throw new ConfigError(`${kind}: statistics of the float model need walk: { advance: 'both' }, and windows that do not overlap`, {
        method: kind,
      });
    }
    const entering = of === 'float' ? floatInputs! : inputs;
    const groups = inputGroups(sites, model);
    const tally = createTally(groups, collectors);
    try {
      for (const [b, batch] of batches.entries()) {
        throwIfAborted(signal, kind);
        collectFrom(stages, range, groups, { batch, carry: entering[b]!, add: (group, x) => tally.add(group, x, batch) });
        await breath();
      }
      const found = new Map<Site, unknown>();
      for (const group of groups) {
        const values = await tally.finish(group);
        results.push(values.release);
        for (const site of group.sites) found.set(site, values.results);
      }
      return found as never;
    } finally {
      tally.dispose();
    }
  };

  return {
    window: {
      stages: stages.slice(...range),
      groups: inputGroups(context.sites, model).map(({ sites }) => sites),
      collect,
      leaving: context.leaving,
      replace: (site, made) => {
        const free = lends.take(site);
        try {
          context.replace(site, made);
        } finally {
          free();
        }
      },
      lend: lends.lend,
      lent: lends.of,
      lendInput: lends.lendInput,
      lentInput: lends.inputOf,
      fit: async (fit) => {
        if (targets === undefined) throw new ConfigError(`${kind}: fitting needs walk: { advance: 'both' }`, { method: kind });
        await fitWindow(
          { kind, stages: stages.slice(...range), batches, inputs, targets, ...(signal && { signal }), ...(onFit && { onFit }) },
          fit,
        );
      },
      replay: async (visit) => {
        for (const [index, { call }] of batches.entries()) {
          throwIfAborted(signal, kind);
          const output = runStages(stages, range, inputs[index]!, call);
          const target = targets?.[index];
          try {
            await visit({ output, index, ...(target === undefined ? {} : { target }) });
          } finally {
            dispose(Object.values(output));
          }
          await breath();
        }
      },
    },
    close: () => {
      for (const release of results) release();
    },
  };
}

interface OneBatch {
  readonly batch: CalibrationBatch;
  readonly carry: Carry;
  add(group: InputGroup, x: Tensor): void;
}

/** Runs as many stages of the window as hold watched sites, the last one only as far as its last watched input. */
function collectFrom(
  stages: readonly Stage[],
  [from, to]: readonly [number, number],
  groups: readonly InputGroup[],
  { batch, carry, add }: OneBatch,
): void {
  let entering = carry;
  let left = groups;
  for (let s = from; s < to && left.length > 0; s++) {
    const here = left.filter(({ sites }) => stages[s]!.sites.includes(sites[0]!));
    const last = here.length === left.length;
    // Only the last stage may be left early: what the others give is read by the next.
    const { seen, result } = watchInputs(here, {
      onInput: add,
      leave: last,
      run: () => runStages(stages, [s, s + 1], entering, batch.call),
    });
    if (entering !== carry) dispose(Object.values(entering));
    entering = result ?? carry;
    const missing = here.find(({ id }) => !seen.has(id));
    if (missing !== undefined) {
      if (result !== undefined) dispose(Object.values(result));
      const { path } = missing.sites[0]!;
      throw new StateError(`'${path}' was not applied to anything: the stage '${stages[s]!.path}' ran without it`, { path });
    }
    left = left.filter((group) => !here.includes(group));
  }
  if (entering !== carry) dispose(Object.values(entering));
}

interface Tally {
  add(group: InputGroup, x: Tensor, batch: CalibrationBatch): void;
  finish(group: InputGroup): Promise<{ readonly results: Readonly<Record<string, unknown>>; release(): void }>;
  dispose(): void;
}

/** Running sums of every group under every collector. */
function createTally(groups: readonly InputGroup[], collectors: Collectors): Tally {
  const names = Object.keys(collectors);
  const states = new Map(
    groups.map(({ id, sites }) => [id, Object.fromEntries(names.map((name) => [name, collectors[name]!.init(sites[0]!)]))]),
  );
  const counts = new Map<string, number>();
  return {
    add: ({ id }, x, batch) => {
      const rows = rowsOf(batch, x as never);
      counts.set(id, (counts.get(id) ?? 0) + rows.count);
      const state = states.get(id)!;
      for (const name of names) {
        const before = state[name]!;
        const next = collectors[name]!.update(before, x as never, rows);
        for (const tensor of Object.values(next)) keep(tensor);
        const live = new Set(Object.values(next));
        for (const tensor of Object.values(before)) if (!live.has(tensor)) tensor.dispose();
        state[name] = next;
      }
    },
    finish: async ({ id, sites }) => {
      const count = counts.get(id) ?? 0;
      if (count === 0) throw new StateError(`no calibration row reached '${sites[0]!.path}'`, { path: sites[0]!.path });
      const state = states.get(id)!;
      const results: Record<string, unknown> = {};
      for (const name of names) {
        const taken = state[name]!;
        delete state[name];
        results[name] = await collectors[name]!.finish(taken, count);
      }
      return { results, release: () => names.forEach((name) => collectors[name]!.release?.(results[name])) };
    },
    dispose: () => {
      const left: CollectorState[] = [...states.values()].flatMap((state) => Object.values(state));
      for (const state of left) dispose(Object.values(state));
    },
  };
}
