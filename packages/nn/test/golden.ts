import { denseParameter, tensor, tensor2d, type Tensor } from '@niwaki/tensor';
import { denseWeight } from '@niwaki/weights';
import { createModel, type HfConfig, type Model } from '@niwaki/nn';
import { sharedJson } from '../../testing/src/shared.ts';
import { sharedTensors } from '../../testing/src/shared-tensors.ts';

export interface GoldenIo {
  readonly input_ids: number[][];
  readonly attention_mask: number[][];
  readonly hidden_shape: number[];
  readonly hidden0: number[];
  readonly hidden1: number[];
  readonly hidden_last: number[];
  readonly logits_shape: number[];
  readonly logits: number[];
  readonly greedy_from_first4: number[];
}

/** A golden model; `change` edits config and tensors on their way in, for variants that must fail. */
export function goldenModel(
  name: string,
  change: { config?: (config: HfConfig) => HfConfig; tensor?: (name: string, values: Float32Array) => Float32Array } = {},
): Promise<Model> {
  const tensors = sharedTensors(`golden/models/${name}/model.safetensors`);
  const read = (path: string): Tensor | undefined => {
    const found = tensors.get(path);
    return found && tensor(change.tensor?.(path, found.values()) ?? found.values(), [...found.shape]);
  };
  const config = sharedJson<HfConfig>(`golden/models/${name}/config.json`);
  return createModel({
    config: change.config?.(config) ?? config,
    source: name,
    weight: async (path, _, role) => {
      const found = read(path);
      return found && denseWeight(denseParameter(path, found, { role }));
    },
    vector: async (path, _, role) => {
      const found = read(path);
      return found && denseParameter(path, found, { role });
    },
  });
}

export const goldenIo = (name: string): GoldenIo => sharedJson<GoldenIo>(`golden/models/${name}/io.json`);

/** A golden's batch: padded keys on the left are not seen, positions count the padding as the reference does. */
export function goldenBatch({ input_ids: ids, attention_mask: mask }: GoldenIo): { tokenIds: Tensor; keysFrom: Tensor; keysTo: Tensor } {
  const from = mask.map((row) => row.map(() => row.indexOf(1)));
  const to = mask.map((row) => row.map((seen, t) => (seen === 1 ? t + 1 : 0)));
  const int = (rows: number[][]): Tensor => tensor2d(rows, undefined, 'int32');
  return { tokenIds: int(ids), keysFrom: int(from), keysTo: int(to) };
}

/** Largest difference over the rows that are not padding. */
export function distanceTo(expected: readonly number[], values: ArrayLike<number>, { attention_mask: mask }: GoldenIo): number {
  const width = expected.length / mask.flat().length;
  let worst = 0;
  for (const [row, seen] of mask.flat().entries()) {
    if (seen === 0) continue;
    for (let i = row * width; i < (row + 1) * width; i++) worst = Math.max(worst, Math.abs(values[i]! - expected[i]!));
  }
  return worst;
}
