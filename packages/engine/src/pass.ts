import {
  add,
  ConfigError,
  dispose,
  keep,
  recordTape,
  standIn,
  type Draw,
  type Parameter,
  type Remade,
  type Sink,
  type Tape,
  type Tensor,
} from '@niwaki/tensor';
import { createCall, type Call } from '@niwaki/weights';
import type { Carry, Stage } from '@niwaki/nn';
import type { Turn } from './estimator.ts';
import { differentiates, type Route } from './route.ts';

/** A stage's forward with the tape on. */
export interface Recorded {
  readonly tape: Tape<Carry>;
  readonly watched: ReadonlyMap<Parameter, Tensor>;
}

interface RunOptions {
  readonly part?: number;
  readonly watched?: ReadonlyMap<Parameter, Tensor>;
  /** What parts before this one gave: taken out by a gradient that goes on adding. */
  readonly gradients?: Map<Parameter, Tensor>;
}

/**
 * One micro-batch on its way through the stages and back: the streams between stages, their cotangents, and gradients
 * that wait for another use of their parameter. It owns every tensor that lives from one piece to the next.
 */
export interface Pass {
  readonly route: Route;
  /** Runs a stage on the streams of now. `record`: with the tape on, for `backward` to use. */
  forward(s: number, options: { record: boolean }): void;
  /** Lets go of what of a stage's record is nearly free to make again. */
  thin(s: number): void;
  /** Drops a stage's record: it will be computed again. */
  forget(s: number): void;
  /** Streams that enter a stage. */
  entering(s: number): Carry;
  /** Names of entering streams that depend on a trained parameter, so that gradients must reach them. */
  wanted(s: number): readonly string[];
  /** Runs a function of a stage with a call of this micro-batch. `part`: which chunk of the head it is. */
  run<V>(s: number, forward: (call: Call) => V, options?: RunOptions): V;
  /** The same with the tape on and the stage's trained parameters watched. `unread`: nobody reads the values, the record is all. */
  record(s: number, forward: (call: Call) => Carry, options?: Omit<RunOptions, 'watched'> & { unread?: boolean }): Recorded;
  /** A stream's cotangent, summed over its readers; takes the tensor over. */
  addCotangent(name: string, value: Tensor): void;
  /** A parameter's gradient from one stage; pushed once the lowest stage that reads it has given its part. */
  addGradient(s: number, parameter: Parameter, value: Tensor | undefined, sink: Sink): void;
  backward(s: number, sink: Sink): void;
  /** The same with a stop after each gradient that was pushed, where the caller may await; each part runs in a tidy of the caller's. */
  backwardInParts(s: number, sink: Sink): Generator<void, void, undefined>;
  /** What the stage gave in the first forward, or undefined where its record is kept or no gradient goes through it. */
  given(s: number): Carry | undefined;
  /** What `thin` would let go of, beside the same made again, which is the caller's. */
  remade(s: number): readonly Remade[];
  dispose(): void;
}

/** @param options `training` false: what noise a stage adds when it trains (dropout) is left out */
export function createPass(
  turn: Pick<Turn, 'batch' | 'view' | 'at' | 'draw' | 'wanted' | 'onGradient'>,
  route: Route,
  { training = true }: { readonly training?: boolean } = {},
): Pass {
  const { stages, trained, dependent, uses } = route;
  const streams = new Map<string, Tensor>();
  /** Streams around stages that gradients go through: these are computed again, so nothing of theirs may go. */
  const needed = new Set<Tensor>();
  const enteringAt: (Carry | undefined)[] = [];
  const wantedAt: (readonly string[])[] = [];
  const writtenBy: (Carry | undefined)[] = [];
  const recordOf: (Recorded | undefined)[] = [];
  const decisionsOf = new Map<string, Map<string, unknown>>();
  const cotangents = new Map<string, Tensor>();
  const waiting = new Map<Parameter, Tensor>();
  // A stage may hand a field of the batch on as a stream: that one is the caller's.
  const given = new Set<unknown>(Object.values(turn.batch));

  const run: Pass['run'] = (s, forward, { part = 0, watched, gradients } = {}) => {
    const decisions = decisionsOf.get(`${s}/${part}`) ?? new Map<string, unknown>();
    decisionsOf.set(`${s}/${part}`, decisions);
    const { batch, view, at, draw, wanted, onGradient } = turn;
    // Chunks of the head are forwards of their own: they draw under their own names.
    const own: Draw = part === 0 ? draw : { at: (name, sample) => draw.at(`${name}@${part}`, sample) };
    const out = forward(
      createCall({
        batch,
        view,
        at,
        draw: own,
        training,
        decisions,
        ...(watched === undefined ? {} : { watched }),
        ...(gradients === undefined ? {} : { gradients }),
        ...(wanted === undefined ? {} : { wanted }),
        ...(onGradient === undefined ? {} : { onGradient }),
      }),
    );
    keepAll([...decisions.values()]);
    return out;
  };

  const record: Pass['record'] = (s, forward, { unread = false, ...options } = {}) => {
    const watched = new Map<Parameter, Tensor>();
    const tape = recordTape(() => {
      // Read inside: where the store is packed the value is transient, and the tape knows it by id alone.
      for (const parameter of trained[s]!) watched.set(parameter, watch(parameter));
      return run(s, (call) => forward(unread ? { ...call, unread } : call), { ...options, watched });
    });
    return { tape, watched };
  };

  const enter = (s: number): Carry => {
    const stage = stages[s]!;
    for (const name of stage.reads) if (!streams.has(name)) checkWritten(stages, s, name);
    const entering = Object.fromEntries(stage.reads.flatMap((name) => (streams.has(name) ? [[name, streams.get(name)!]] : [])));
    enteringAt[s] = entering;
    wantedAt[s] = dependent[s]!.filter((name) => entering[name]?.dtype === 'float32');
    return entering;
  };

  const backwardInParts = function* (s: number, sink: Sink): Generator<void, void, undefined> {
    const entering = enteringAt[s]!;
    disposeCarry(writtenBy, s);
    const names = [...cotangents.keys()].filter((name) => stages[s]!.writes.includes(name));
    const xs = wantedAt[s]!.map((name) => entering[name]!);
    if (names.length === 0 || (xs.length === 0 && trained[s]!.length === 0)) {
      for (const parameter of trained[s]!) addGradient(s, parameter, undefined, sink);
      return;
    }
    const { tape, watched } = recordOf[s] ?? record(s, (call) => stages[s]!.run(entering, call), { unread: true });
    delete recordOf[s];
    const out = tape.value;
    // A stream that the stage hands through keeps its cotangent as it is.
    const produced = names.filter((name) => out[name] !== undefined && out[name] !== entering[name]);
    const pulled = tape.pullEach(
      [...xs, ...watched.values()],
      produced.map((name) => ({ of: out[name]!, value: cotangents.get(name)! })),
    );
    for (const [name, value] of Object.entries(out)) if (value !== entering[name] && !given.has(value)) value.dispose();
    const parameters = [...watched.keys()];
    const streamed: [name: string, value: Tensor][] = [];
    let whole = false;
    try {
      for (const [x, gradient] of pulled) {
        if (x >= xs.length) {
          addGradient(s, parameters[x - xs.length]!, gradient, sink);
          yield;
        } else if (gradient !== undefined) streamed.push([wantedAt[s]![x]!, gradient]);
      }
      whole = true;
    } finally {
      if (!whole) dispose(streamed.map(([, value]) => value));
    }
    for (const name of produced) {
      cotangents.get(name)!.dispose();
      cotangents.delete(name);
    }
    for (const [name, value] of streamed) addCotangent(name, value);
  };

  const backward = (s: number, sink: Sink): void => {
    const parts = backwardInParts(s, sink);
    while (!parts.next().done);
  };

  const addCotangent = (name: string, value: Tensor): void => {
    const before = cotangents.get(name);
    cotangents.set(name, keep(before === undefined ? value : add(before, value)));
    if (before !== undefined) dispose([before, value]);
  };

  const addGradient: Pass['addGradient'] = (s, parameter, value, sink) => {
    const before = waiting.get(parameter);
    const total = before === undefined || value === undefined ? (before ?? value) : add(before, value);
    if (before !== undefined && value !== undefined) dispose([before, value]);
    if (total === undefined) return;
    keep(total);
    if (uses.get(parameter)![0] === s) {
      waiting.delete(parameter);
      sink.push(parameter, { kind: 'dense', value: total });
    } else waiting.set(parameter, total);
  };

  return {
    route,
    forward: (s, options) => {
      const entering = enter(s);
      const recorded = options.record ? record(s, (call) => stages[s]!.run(entering, call)) : undefined;
      const out = recorded?.tape.value ?? run(s, (call) => stages[s]!.run(entering, call));
      recordOf[s] = recorded;
      const written: Record<string, Tensor> = {};
      if (differentiates(route, s)) for (const value of [...Object.values(entering), ...Object.values(out)]) needed.add(value);
      for (const [name, value] of Object.entries(out)) {
        if (value === entering[name]) continue;
        if (!given.has(value)) written[name] = keep(value);
        const before = streams.get(name);
        // Nobody comes back for it.
        if (before !== undefined && !needed.has(before)) dropOverwritten(writtenBy, before);
        streams.set(name, value);
      }
      writtenBy[s] = written;
    },
    thin: (s) => recordOf[s]?.tape.thin(),
    forget: (s) => {
      recordOf[s]?.tape.dispose();
      delete recordOf[s];
    },
    entering: (s) => enteringAt[s] ?? enter(s),
    wanted: (s) => {
      if (wantedAt[s] === undefined) enter(s);
      return wantedAt[s]!;
    },
    run,
    record,
    addCotangent,
    addGradient,
    backward,
    backwardInParts,
    given: (s) => (recordOf[s] === undefined && differentiates(route, s) ? writtenBy[s] : undefined),
    remade: (s) => recordOf[s]?.tape.remade() ?? [],
    dispose: () => {
      for (const recorded of recordOf) recorded?.tape.dispose();
      writtenBy.forEach((_, s) => disposeCarry(writtenBy, s));
      dispose([...cotangents.values(), ...waiting.values()]);
      dispose([...decisionsOf.values()].map((decisions) => [...decisions.values()]) as never);
    },
  };
}

/** A value that is stored as codes need not be decoded for the tape to know it. */
function watch(parameter: Parameter): Tensor {
  const holder = parameter.stored?.[0];
  return holder === undefined ? parameter.read() : standIn(parameter.shape, holder.read());
}

/** A stage that an adapter brought writes nothing in calls that do not read its set; a stream that no stage can write is a mistake. */
function checkWritten(stages: readonly Stage[], s: number, name: string): void {
  const stage = stages[s]!;
  if (stages.slice(0, s).some(({ writes }) => writes.includes(name))) return;
  throw new ConfigError(`stage '${stage.path}' reads the stream '${name}', which no stage before it writes`, {
    stage: stage.path,
    stream: name,
  });
}

function disposeCarry(written: (Carry | undefined)[], s: number): void {
  for (const value of Object.values(written[s] ?? {})) value.dispose();
  delete written[s];
}

function dropOverwritten(written: readonly (Carry | undefined)[], value: Tensor): void {
  if (written.some((carry) => carry !== undefined && Object.values(carry).includes(value))) value.dispose();
}

/** Tensors anywhere in the choices a stage made: they are replayed, so they outlive its tidy. */
function keepAll(value: unknown): void {
  if (typeof value !== 'object' || value === null) return;
  if ('dataId' in value) keep(value as Tensor);
  else if (!ArrayBuffer.isView(value)) Object.values(value).forEach(keepAll);
}
