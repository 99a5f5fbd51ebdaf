/** The passes of a generation: the whole prompt, then a token at a time. */
import {
  dispose,
  plainView,
  record,
  slice,
  tensor2d,
  tidy,
  type Activations,
  type Recording,
  type Tensor,
  type Tensor2D,
  type View,
} from '@niwaki/tensor';
import { createCall } from '@niwaki/weights';
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

/**
 * Passes of one model. Behind a cache every token runs the same kernels on the same memory, and what differs comes with the
 * streams of the first stage: so where the device can, the stages after it are recorded once and replayed for each token, until
 * the cache moves or somebody changes the model.
 */
export function createPasses(model: Model, { cache, view, activations }: PassesOptions): Passes {
  let recorded: { readonly recording: Recording<{ logits: Tensor }>; holds(): boolean } | undefined;
  let records = cache !== undefined;
  const forget = (): void => {
    recorded?.recording.dispose();
    recorded = undefined;
  };

  /** All stages after the first. */
  const rest = ({ tokenIds, ...streams }: Carry & { readonly tokenIds: Tensor2D }): { logits: Tensor } => {
    const [head, ...before] = model.stages().slice(1).reverse();
    const call = callOf(tokenIds);
    const last = runStages(before.reverse(), streams, call, { give: head!.reads });
    try {
      return { logits: tidy(() => head!.run(pickRows(head!, last, lastRow), call)['logits']!) };
    } finally {
      dispose(Object.values(last).filter((stream) => !Object.values(streams).includes(stream)));
    }
  };
  const callOf = (tokenIds: Tensor2D) =>
    createCall({
      batch: { tokenIds },
      ...(view !== undefined && { view }),
      ...(cache !== undefined && { session: { cache } }),
      ...(activations !== undefined && { activations }),
    });

  /** The logits from a recording, which is made where there is none that holds; undefined where nothing can be recorded. */
  const replayed = (streams: Carry & { readonly tokenIds: Tensor2D }): Tensor | undefined => {
    if (!records || cache?.begun !== true || streams.tokenIds.size > 1) return undefined;
    if (cache.reserve(1) || recorded?.holds() === false) forget();
    if (recorded !== undefined) {
      recorded.recording.replay(streams);
      return recorded.recording.result.logits;
    }
    const recording = isPlain(model, view) ? record(streams, rest) : undefined;
    if (recording === undefined) records = false;
    else recorded = { recording, holds: unchanged(model) };
    return recording?.result.logits;
  };

  return {
    logits: async (ids) => {
      // First, for it refuses a model that is gone: nothing is made before.
      const [first] = model.stages();
      const tokenIds = tensor2d([...ids], [1, ids.length], 'int32');
      let streams: Carry = {};
      let own: Tensor | undefined;
      try {
        streams = runStages([first!], {}, callOf(tokenIds));
        const logits = replayed({ ...streams, tokenIds }) ?? (own = rest({ ...streams, tokenIds }).logits);
        cache?.advance(ids.length);
        return (await logits.data()) as Float32Array;
      } finally {
        tokenIds.dispose();
        dispose(Object.values(streams));
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
