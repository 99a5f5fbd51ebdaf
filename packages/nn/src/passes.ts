/** The passes of a generation: the whole prompt, then a token at a time. */
import {
  dispose,
  plainView,
  record,
  slice,
  tensor1d,
  tensor2d,
  tidy,
  type Activations,
  type Recording,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
  type View,
} from '@niwaki/tensor';
import { createCall, type Call } from '@niwaki/weights';
import { runStages } from './forward.ts';
import type { Carry, Model } from './graph.ts';
import type { KeyValueCache } from './kv-cache.ts';
import { pickRows } from './row-streams.ts';

export interface PassesOptions {
  readonly cache?: KeyValueCache | undefined;
  readonly view?: View | undefined;
  readonly activations?: Activations | undefined;
}

export interface Passes {
  /** Logits of the token after `ids`, which follow what the cache holds, [vocabulary]: the head runs on the last row alone. */
  logits(ids: readonly number[]): Promise<Float32Array>;
  dispose(): void;
}

/** Streams of the first stage, ids of tokens, and on the device how many are cached: all that tells one pass from the next. */
type Inputs = Carry & { readonly tokenIds: Tensor2D; readonly past: Tensor1D };

/**
 * Passes of one model. Behind a cache every token runs the same kernels on the same memory, and what differs is in tensors: so
 * where the device can, the stages after the first are recorded once and replayed for each token, until the cache moves or
 * somebody changes the model.
 */
export function createPasses(model: Model, { cache, view, activations }: PassesOptions): Passes {
  let recorded: { readonly recording: Recording<{ logits: Tensor }>; holds(): boolean } | undefined;
  let records = cache !== undefined;
  const forget = (): void => {
    recorded?.recording.dispose();
    recorded = undefined;
  };

  /** All stages after the first. */
  const rest = ({ tokenIds, past, ...streams }: Inputs): { logits: Tensor } => {
    const stages = model.stages();
    const head = stages.at(-1)!;
    const call = callOf(tokenIds, past);
    const last = runStages(stages.slice(1, -1), streams, call, { give: head.reads });
    try {
      return { logits: tidy(() => head.run(pickRows(head, last, lastRow), call)['logits']!) };
    } finally {
      dispose(Object.values(last).filter((stream) => !Object.values(streams).includes(stream)));
    }
  };
  const callOf = (tokenIds: Tensor2D, past: Tensor1D): Call =>
    createCall({
      batch: { tokenIds },
      ...(view !== undefined && { view }),
      ...(cache !== undefined && { session: { cache: cache.at(past) } }),
      ...(activations !== undefined && { activations }),
    });

  /** The logits from a recording, which is made where there is none that holds; undefined where nothing can be recorded. */
  const replayed = (inputs: Inputs): Tensor | undefined => {
    if (!records || cache?.begun !== true || inputs.tokenIds.size > 1) return undefined;
    if (cache.reserve(1) || recorded?.holds() === false) forget();
    if (recorded !== undefined) {
      recorded.recording.replay(inputs);
      return recorded.recording.result.logits;
    }
    const recording = isPlain(model, view) ? record(inputs, rest) : undefined;
    if (recording === undefined) records = false;
    else recorded = { recording, holds: unchanged(model) };
    return recording?.result.logits;
  };

  return {
    logits: async (ids) => {
      // First, for it refuses a model that is gone: nothing is made before.
      const [first] = model.stages();
      const tokenIds = tensor2d([...ids], [1, ids.length], 'int32');
      const past = tensor1d([cache?.length ?? 0], 'int32');
      let streams: Carry = {};
      let own: Tensor | undefined;
      try {
        streams = runStages([first!], {}, callOf(tokenIds, past));
        const inputs: Inputs = { ...streams, tokenIds, past };
        const logits = replayed(inputs) ?? (own = rest(inputs).logits);
        cache?.advance(ids.length);
        return (await logits.data()) as Float32Array;
      } finally {
        dispose([tokenIds, past, ...Object.values(streams)]);
        own?.dispose();
      }
    },
    dispose: forget,
  };
}

const lastRow = (stream: Tensor): Tensor =>
  stream.shape[0] === 1 ? stream : slice(stream as Tensor2D, [stream.shape[0]! - 1, 0], [1, stream.shape[1]!]);

/** Whether every parameter is read as it is stored: what a view makes of one may come from anywhere. */
const isPlain = (model: Model, view: View = plainView): boolean =>
  [...model.parameters().values()].every((parameter) => view.of(parameter).kind === 'plain');

/** Asks whether a pass would still find what it finds now: the same graph, values that nobody wrote, adapters set as they are. */
function unchanged(model: Model): () => boolean {
  const { revision } = model;
  const parameters = [...model.parameters().values()].map((parameter) => [parameter, parameter.version] as const);
  const adapters = [...model.adapters.values()].flatMap(({ sites }) => [...sites.values()]);
  const settings = adapters.map(settingsOf);
  return () =>
    model.revision === revision &&
    parameters.every(([parameter, version]) => parameter.version === version) &&
    adapters.every((adapter, i) => settingsOf(adapter).every((value, j) => value === settings[i]![j]));
}

/** Numbers and switches that an adapter shows, such as its strength: unlike parameters they say nothing when they change. */
const settingsOf = (adapter: object): readonly unknown[] => Object.values(adapter).filter((value) => typeof value !== 'object');
