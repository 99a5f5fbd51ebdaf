import {
  checkCall,
  checkOptions,
  ConfigError,
  dispose,
  gather,
  slice,
  throwIfAborted,
  tidy,
  type Tensor,
  type Tensor1D,
  type View,
} from '@niwaki/tensor';
import { createCall, type Batch } from '@niwaki/weights';
import { aModel, pickRows, type Carry, type Model } from '@niwaki/nn';
import { anObjective, type Objective } from '@niwaki/engine';

export interface EvaluateBatchOptions {
  readonly view?: View;
  readonly signal?: AbortSignal;
  /** Bytes of logits alive at once; default 8 MiB. */
  readonly chunkBytes?: number;
}

export const evaluateBatchNames = ['view', 'signal', 'chunkBytes'] as const;

/**
 * The loss of each row that an objective scores, in order: forward only, dropout off, the head in chunks of rows, so that
 * full logits never exist. The batch stays the caller's.
 */
export async function evaluateBatch(
  model: Model,
  batch: Batch,
  objective: Objective,
  options: EvaluateBatchOptions = {},
): Promise<Float32Array> {
  checkCall('evaluateBatch(model, batch, causalLM())', { model: [model, aModel], objective: [objective, anObjective] });
  checkOptions('evaluateBatch', options, evaluateBatchNames);
  const { view, signal, chunkBytes = 8 * 2 ** 20 } = options;
  const call = createCall({ batch, ...(view && { view }) });
  const stages = model.stages();
  const head = stages.at(-1)!;
  const { index, target } = objective.rows(batch);
  const lists = [index, target].filter((list) => !Object.values(batch).includes(list));
  let carry: Carry = {};
  try {
    for (const [i, stage] of stages.slice(0, -1).entries()) {
      throwIfAborted(signal, 'evaluation');
      const before = carry;
      const wanted = new Set(stages.slice(i + 1).flatMap(({ reads }) => reads));
      const written = tidy(() => stage.run(before, call));
      carry = Object.fromEntries(Object.entries({ ...before, ...written }).filter(([name]) => wanted.has(name)));
      const alive = new Set(Object.values(carry));
      dispose([...new Set([...Object.values(before), ...Object.values(written)])].filter((stream) => !alive.has(stream)));
    }
    if (carry['h'] === undefined) throw new ConfigError(`the last stage '${head.path}' must read the stream 'h'`, { stage: head.path });
    const losses = new Float32Array(index.size);
    const size = Math.max(1, Math.floor(chunkBytes / 4 / model.info.vocabularySize));
    for (let from = 0; from < index.size; from += size) {
      throwIfAborted(signal, 'evaluation');
      const scores = tidy(() => {
        const chunk = { index: cut(index, from, size), target: cut(target, from, size) };
        const streams = pickRows(head, carry, (stream) => gather(stream, chunk.index));
        return objective.score(head.run(streams, call), chunk.target);
      });
      losses.set((await scores.data()) as Float32Array, from);
      scores.dispose();
    }
    return losses;
  } finally {
    dispose([...new Set<Tensor>([...Object.values(carry), ...lists])]);
  }
}

const cut = (list: Tensor1D, from: number, size: number): Tensor1D => slice(list, [from], [Math.min(size, list.size - from)]);
