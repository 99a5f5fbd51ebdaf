import {
  checkCall,
  checkOptions,
  dispose,
  keep,
  reshape,
  tidy,
  type Activations,
  type Tensor,
  type Tensor3D,
  type View,
} from '@niwaki/tensor';
import { createCall, type Batch, type Call, type Session } from '@niwaki/weights';
import { aModel } from './nouns.ts';
import { tokenIdsOf } from './batch.ts';
import type { Carry, Model, Stage } from './graph.ts';
import { cacheOf } from './kv-cache.ts';

export interface ForwardOptions {
  readonly view?: View;
  readonly session?: Session;
  /** Filled with what the stages emit, by name: hidden states under the path of the module that gives them. The caller disposes it. */
  readonly emitted?: Map<string, Tensor[]>;
  /** How few rows meet packed matrices; default exact. */
  readonly activations?: Activations;
}

/**
 * Logits of every token, f32 [batch, time, vocabulary]; inference only, nothing is kept for a backward pass.
 * Costs 4 · batch · time · vocabulary bytes: training and generation run the head on the rows they need instead.
 */
export function forward(model: Model, batch: Batch, options: ForwardOptions = {}): Tensor3D {
  checkCall('forward(model, batch)', { model: [model, aModel] });
  checkOptions('forward', options, ['view', 'session', 'emitted', 'activations']);
  const call = createCall({ batch, ...options });
  const emitted = options.emitted;
  const { logits } = runStages(model.stages(), {}, call, emitted === undefined ? {} : { emitted });
  const [rows, time] = tokenIdsOf(batch).shape;
  cacheOf(options.session)?.advance(time);
  const shaped = reshape(logits!, [rows, time, model.info.vocabularySize]) as Tensor3D;
  logits!.dispose();
  return shaped;
}

/**
 * Runs stages one after another, each in its own tidy, and disposes every stream once nothing reads it any more. The
 * result holds the streams of `give`, by default what the last stage writes; tensors of the given carry stay the caller's,
 * emitted ones become the caller's.
 */
export function runStages(
  stages: readonly Stage[],
  carry: Carry,
  call: Call,
  { emitted, give = stages.at(-1)?.writes ?? [] }: { emitted?: ReadonlyMap<string, readonly Tensor[]>; give?: readonly string[] } = {},
): Carry {
  const readAfter = namesReadAfter(stages, give);
  const mine = new Set<Tensor>();
  let streams: Carry = carry;
  try {
    for (const [i, stage] of stages.entries()) {
      const written = tidy(() => {
        const out = stage.run(streams, call);
        for (const tensor of shownIn(emitted)) keep(tensor);
        return out;
      });
      for (const tensor of Object.values(written)) mine.add(tensor);
      streams = Object.fromEntries(Object.entries({ ...streams, ...written }).filter(([name]) => readAfter[i]!.has(name)));
      const live = new Set(Object.values(streams));
      const shown = new Set(shownIn(emitted));
      for (const tensor of mine) {
        if (live.has(tensor)) continue;
        mine.delete(tensor);
        if (!shown.has(tensor)) tensor.dispose();
      }
    }
    return streams;
  } catch (error) {
    const shown = new Set(shownIn(emitted));
    dispose([...mine].filter((tensor) => !shown.has(tensor)));
    throw error;
  }
}

const shownIn = (emitted: ReadonlyMap<string, readonly Tensor[]> | undefined): readonly Tensor[] => [...(emitted?.values() ?? [])].flat();

/** For each stage, the streams that a later one reads, and those given out in the end. */
function namesReadAfter(stages: readonly Stage[], give: readonly string[]): readonly ReadonlySet<string>[] {
  let names: ReadonlySet<string> = new Set(give);
  const after: ReadonlySet<string>[] = [];
  for (let i = stages.length - 1; i >= 0; i--) {
    after[i] = names;
    names = new Set([...names, ...stages[i]!.reads]);
  }
  return after;
}
