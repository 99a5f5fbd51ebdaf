import { denseParameter, tensor, type Tensor } from '@niwaki/tensor';
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
