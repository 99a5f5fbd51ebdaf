import { dispose, keep, reshape, tidy, type Tensor, type Tensor3D, type View } from '@niwaki/tensor';
import { createCall, type Batch, type Call, type Session } from '@niwaki/weights';
import { tokenIdsOf } from './batch.ts';
import type { Carry, Model, Stage } from './graph.ts';
import { cacheOf } from './kv-cache.ts';

export interface ForwardOptions {
  readonly view?: View;
  readonly session?: Session;
  /** Filled with what the stages emit, by name: hidden states under the path of the module that gives them. The caller disposes it. */
  readonly emitted?: Map<string, Tensor[]>;
}

/**
 * Logits of every token, f32 [batch, time, vocabulary]; inference only, nothing is kept for a backward pass.
 * Costs 4 · batch · time · vocabulary bytes: training and generation run the head on the rows they need instead.
 */
export function forward(model: Model, batch: Batch, options: ForwardOptions = {}): Tensor3D {
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
 * Runs stages one after another, each in its own tidy, and disposes every stream once it is overwritten. The result holds
 * the streams of the end; tensors of the given carry stay the caller's.
 */
export function runStages(
  stages: readonly Stage[],
  carry: Carry,
  call: Call,
  { emitted }: { emitted?: ReadonlyMap<string, Tensor[]> } = {},
): Carry {
  const mine = new Set<Tensor>();
  const shown = (): Set<Tensor> => new Set([...(emitted?.values() ?? [])].flat());
  let streams: Carry = carry;
  try {
    for (const [i, stage] of stages.entries()) {
      const written = tidy(() => {
        const out = stage.run(streams, call);
        for (const tensor of shown()) keep(tensor);
        return out;
      });
      const next: Carry = { ...streams, ...written };
      for (const tensor of Object.values(written)) mine.add(tensor);
      const wanted = stillRead(stages, i, next);
      const visible = shown();
      for (const tensor of mine) {
        if (wanted.has(tensor)) continue;
        mine.delete(tensor);
        if (!visible.has(tensor)) tensor.dispose();
      }
      streams = Object.fromEntries(Object.entries(next).filter(([, tensor]) => !tensor.isDisposed));
    }
    return streams;
  } catch (error) {
    dispose([...mine]);
    throw error;
  }
}

/** Streams that a later stage reads, and those that the last stage wrote. */
function stillRead(stages: readonly Stage[], done: number, carry: Carry): Set<Tensor> {
  const last = stages[stages.length - 1]!;
  const names = new Set([...stages.slice(done + 1).flatMap((stage) => stage.reads), ...last.writes]);
  return new Set(
    Object.entries(carry)
      .filter(([name]) => names.has(name))
      .map(([, tensor]) => tensor),
  );
}
