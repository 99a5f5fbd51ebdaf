import {
  abs,
  add,
  ConfigError,
  dispose,
  isFinite as finite,
  keep,
  mul,
  square,
  StateError,
  tensor1d,
  tidy,
  where,
  zeros,
  zerosLike,
  type Range,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
} from '@niwaki/tensor';
import { entriesOf, flatPlaces, largestOf, packPlaces, type SparseDeltaParts, type Weight } from '@niwaki/weights';
import { beginEntries, type NewEntries, type State, type Transform } from '@niwaki/optim';
import type { EditableStates, Participant, StepMoment } from '@niwaki/engine';
import { exchange, largestProducts, leastOf, type Candidates } from './drop-and-grow.ts';

export interface ReselectionOptions {
  /** 'AG' (default): accumulated gradients. 'MA': momentum approximation, for SM3. */
  readonly algorithm: 'AG' | 'MA';
  /** Applied updates from one choice to the next, S; default 20. */
  readonly reselectionSteps: number;
  /** Steps before a choice whose gradients count, γ; default 5, below `reselectionSteps`. */
  readonly accumulationSteps: number;
  /** Part of the entries that is exchanged, at first, (0, 1]; default 0.2. It falls to 0 over the run. */
  readonly initialRate: number;
  /** How it falls; default 'linear', whose first choice is free: all entries may go. */
  readonly policy: 'linear' | 'cosine';
}

/** Entries of one matrix. */
interface Matrix extends SparseDeltaParts {
  readonly shape: readonly [number, number];
  delta(): Weight;
}

/** Gradients seen so far at the places that may grow. The tensors are its own. */
interface Seen {
  /** int32 [entries, 2] */
  readonly places: Tensor2D;
  /** Σ g and Σ g² over micro-batches, each times their number in its step: of the size of a step's gradient. */
  readonly sum: Tensor1D;
  readonly squares: Tensor1D;
  readonly samples: number;
  readonly steps: number;
}

/** Part of the entries to exchange after `updates` of `steps`. */
export function reselectionRate(
  { policy, initialRate, accumulationSteps }: Pick<ReselectionOptions, 'policy' | 'initialRate' | 'accumulationSteps'>,
  updates: number,
  steps: number,
): number {
  if (updates > steps) return 0;
  if (policy === 'cosine') return (initialRate * (1 + Math.cos((Math.PI * updates) / steps))) / 2;
  return updates === accumulationSteps ? 1 : initialRate * (1 - updates / steps);
}

/**
 * Drop and grow (SpIEL, algorithm 1): γ updates after every multiple of S, entries of sparse deltas that changed least get the
 * places that promise most. A choice reads indices and values back, and what was seen. A refused step is not seen.
 */
export function reselection(matrices: readonly Matrix[], options: ReselectionOptions): Participant {
  const { algorithm, reselectionSteps, accumulationSteps, initialRate, policy } = options;
  const byWeight = new Map(matrices.map((matrix) => [matrix.delta(), matrix]));
  const seen = new Map<Matrix, Seen>();
  // Of the step that runs: whether it counts is known at its end.
  const pending = new Map<Matrix, Seen>();
  let checked = false;

  const clear = (list: Map<Matrix, Seen>): void => {
    for (const { places, sum, squares } of list.values()) dispose([places, sum, squares]);
    list.clear();
  };
  const dropPending = (): void => {
    // Places that are used already are not the pending step's own.
    for (const [matrix, { places, sum, squares }] of pending)
      dispose([sum, squares, ...(seen.get(matrix)?.places === places ? [] : [places])]);
    pending.clear();
  };
  const settle = (): void => {
    for (const [matrix, step] of pending) {
      const before = seen.get(matrix);
      seen.set(matrix, before === undefined ? step : joined(before, step));
    }
    pending.clear();
  };

  return {
    name: `spiel ${algorithm} ${initialRate} ${policy} every ${reselectionSteps} after ${accumulationSteps}`,
    byLength: true,
    wants: (moment) => {
      dropPending();
      if (!checked) checkMoment(algorithm, matrices, moment);
      checked = true;
      const phase = moment.updates % reselectionSteps;
      if (phase === 0) clear(seen);
      return algorithm === 'AG' && phase < accumulationSteps ? new Set(byWeight.keys()) : new Set();
    },
    gradient: (weight, gradient, { microBatches }) => {
      const matrix = byWeight.get(weight)!;
      const before = pending.get(matrix);
      const places = before?.places ?? seen.get(matrix)?.places ?? candidatesOf(gradient, matrix);
      pending.set(matrix, added(before, places, gradient, { matrix, microBatches }));
    },
    end: async ({ applied, updates, steps, states, optimizer }) => {
      if (!applied) return dropPending();
      settle();
      if ((updates + 1) % reselectionSteps !== accumulationSteps) return;
      const rate = reselectionRate(options, updates + 1, steps!);
      for (const matrix of matrices) {
        const count = Math.floor(matrix.values.shape[0]! * rate);
        const state = states.get(matrix.values);
        if (count === 0 || state === undefined) continue;
        await reselect(matrix, state, { count, states, optimizer, ...(algorithm === 'AG' && { known: seenOf(matrix, seen) }) });
      }
      clear(seen);
    },
    state: () =>
      new Map(
        [...seen].map(([{ values }, { places, sum, squares, samples, steps }]) => [values.path, { places, sum, squares, samples, steps }]),
      ),
    restore: (given) => {
      clear(seen);
      const known = new Map(matrices.map((matrix) => [matrix.values.path, matrix]));
      for (const [path, state] of given) {
        const matrix = known.get(path);
        if (matrix === undefined || (state['sum'] as Tensor | undefined)?.shape.join() !== matrix.values.shape.join()) {
          throw new StateError(`the saved run saw gradients of '${path}', of which this one has no entries, or others`, {
            path,
            known: [...known.keys()],
            help: 'Resume with the adapter that the checkpoint was made with.',
          });
        }
        for (const value of Object.values(state)) if (typeof value !== 'number') keep(value);
        seen.set(matrix, state as unknown as Seen);
      }
    },
    dispose: () => {
      dropPending();
      clear(seen);
    },
  };
}

/** What an optimizer cannot do is told before the first step, not at the first choice. */
function checkMoment(algorithm: 'AG' | 'MA', [first]: readonly Matrix[], { optimizer, steps }: StepMoment): void {
  if (steps === undefined) {
    throw new ConfigError('spiel exchanges fewer entries towards the end of the run, and the step was not told how long that is', {
      help: 'Give `steps` to step.run, or use train().',
    });
  }
  const { values } = first!;
  tidy(() => {
    const state = optimizer.init(values);
    if (algorithm === 'MA') sums(optimizer, state);
    const none = zeros([...values.shape]);
    const entries = { fresh: none, updates: 1, ...(algorithm === 'AG' && { seen: { mean: none, meanSquare: none, steps: 1 } }) };
    beginEntries(optimizer, state, entries, values);
  });
}

/** What an optimizer remembers of rows and columns. @throws ConfigError where it does not */
function sums({ name, layout = {} }: Transform, state: State): { readonly row: Tensor; readonly column: Tensor } {
  const [row, column] = (['row', 'column'] as const).map((per) => Object.keys(state).find((key) => layout[key]?.per === per));
  if (row !== undefined && column !== undefined) return { row: state[row] as Tensor, column: state[column] as Tensor };
  throw new ConfigError(`spiel: algorithm 'MA' grows by sums of rows and columns, which '${name}' does not keep`, {
    algorithm: 'MA',
    optimizer: name,
    help: "Use sm3, or algorithm: 'AG'.",
  });
}

function seenOf(matrix: Matrix, all: ReadonlyMap<Matrix, Seen>): Seen {
  const found = all.get(matrix);
  if (found !== undefined) return found;
  throw new StateError(`spiel: no gradient of the matrix of '${matrix.values.path}' was seen`, {
    path: matrix.values.path,
    help: "Algorithm 'AG' needs an estimator that goes backward through the model; 'MA' does not.",
  });
}

/** Places of the largest gradients of the whole matrix. */
function candidatesOf(gradient: (rows?: Range) => Tensor, { values, shape }: Matrix): Tensor2D {
  const { places, scores } = largestOf((rows) => magnitudes(gradient(rows)), values.shape[0]!, shape);
  scores.dispose();
  return keep(places);
}

/** What is not finite cannot be sorted; the step that has it will be refused. */
const magnitudes = (gradient: Tensor): Tensor => where(finite(gradient), abs(gradient), zerosLike(gradient));

function added(
  before: Seen | undefined,
  places: Tensor2D,
  gradient: (rows?: Range) => Tensor,
  { matrix, microBatches }: { readonly matrix: Matrix; readonly microBatches: number },
): Seen {
  const [sum, squares] = tidy(() => {
    const own = mul(entriesOf(gradient, places, matrix.shape), microBatches);
    return before === undefined ? [own, square(own)] : [add(before.sum, own), add(before.squares, square(own))];
  }) as [Tensor1D, Tensor1D];
  if (before !== undefined) dispose([before.sum, before.squares]);
  return { places, sum: keep(sum), squares: keep(squares), samples: (before?.samples ?? 0) + 1, steps: 1 };
}

function joined(before: Seen, step: Seen): Seen {
  const [sum, squares] = [add(before.sum, step.sum), add(before.squares, step.squares)] as [Tensor1D, Tensor1D];
  dispose([before.sum, before.squares, step.sum, step.squares]);
  return { places: step.places, sum, squares, samples: before.samples + step.samples, steps: before.steps + step.steps };
}

interface Choice {
  /** Most entries to exchange. */
  readonly count: number;
  readonly states: EditableStates;
  readonly optimizer: Transform;
  /** Absent: sums of rows and columns tell. */
  readonly known?: Seen;
}

/** Gives up to `count` entries other places: values 0 there, state as `beginEntries` has it. */
async function reselect(matrix: Matrix, state: State, { count, states, optimizer, known }: Choice): Promise<void> {
  const { values, index, shape } = matrix;
  const [words, held] = [Int32Array.from(await index.read().data()), Float32Array.from(await values.read().data())];
  const active = flatPlaces(words, shape);
  const change = held.map(Math.abs);
  let chosen: { readonly slots: Int32Array; readonly places: Int32Array; readonly seen?: HostSeen };
  if (known === undefined) {
    const { row, column } = sums(optimizer, state);
    const [rows, columns] = [(await row.data()) as Float32Array, (await column.data()) as Float32Array];
    const places = largestProducts(rows, columns, new Set(active), count);
    chosen = { slots: leastOf(change, count).slice(0, places.length), places };
  } else {
    const seen = await hostSeen(known, shape);
    const { slots, grown } = exchange(active, change, seen.candidates, count);
    chosen = { slots, places: grown.map((i) => seen.candidates.places[i]!), seen: seen.of(grown) };
  }
  const { slots, places, seen } = chosen;
  if (slots.length === 0) return;
  packPlaces(places, shape).forEach((word, i) => (words[slots[i]!] = word));
  for (const slot of slots) held[slot] = 0;
  states.replace(
    values,
    tidy(() => beginEntries(optimizer, state, { ...freshAt(slots, held.length, seen), updates: states.updates(values) }, values) as Kept),
  );
  index.write(tensor1d(words, 'int32'));
  values.write(tensor1d(held));
}

type Kept = Record<string, Tensor | number>;

/** Means of the gradients seen, by entry. */
interface HostSeen {
  readonly mean: Float32Array;
  readonly meanSquare: Float32Array;
  readonly steps: number;
}

async function hostSeen(
  { places, sum, squares, samples, steps }: Seen,
  [, width]: readonly [number, number],
): Promise<{ readonly candidates: Candidates; of(entries: Int32Array): HostSeen }> {
  const [at, total, square] = [await places.data(), await sum.data(), await squares.data()];
  const candidates = {
    places: Int32Array.from(total, (_, i) => at[2 * i]! * width + at[2 * i + 1]!),
    scores: Float32Array.from(total, Math.abs),
  };
  const means = (of: ArrayLike<number>, entries: Int32Array): Float32Array => Float32Array.from(entries, (i) => of[i]! / samples);
  return { candidates, of: (entries) => ({ mean: means(total, entries), meanSquare: means(square, entries), steps }) };
}

/** What begins at some slots, spread over all of them. */
function freshAt(slots: Int32Array, size: number, seen: HostSeen | undefined): Omit<NewEntries, 'updates'> {
  const spread = (of: ArrayLike<number>): Tensor => {
    const all = new Float32Array(size);
    slots.forEach((slot, i) => (all[slot] = of[i]!));
    return tensor1d(all);
  };
  const fresh = spread(new Float32Array(slots.length).fill(1));
  if (seen === undefined) return { fresh };
  return { fresh, seen: { mean: spread(seen.mean), meanSquare: spread(seen.meanSquare), steps: seen.steps } };
}
