import { readFile } from 'node:fs/promises';
import { sharedJson, sharedPath } from '../../testing/src/shared.ts';
import { decodeFloats, memorySource, openSafetensors } from '@niwaki/hub';
import { denseParameter, NotFoundError, tensor, tensor2d, type Tensor } from '@niwaki/tensor';
import { denseWeight } from '@niwaki/weights';
import { createModel, forward, type Model } from '@niwaki/nn';
import type { View } from '@niwaki/tensor';

export interface GoldenIo {
  readonly base_model: string;
  readonly input_ids: readonly (readonly number[])[];
  readonly logits_shape: readonly number[];
  readonly logits: readonly number[];
}

/** A reference model as f32. */
export async function goldenModel(path: string): Promise<Model> {
  const folder = sharedPath(`golden/${path}`);
  const file = await openSafetensors(memorySource(new Uint8Array(await readFile(`${folder}/model.safetensors`))));
  const read = async (name: string): Promise<Tensor | undefined> => {
    try {
      const raw = await file.read(name);
      return tensor(decodeFloats(raw).slice(), [...raw.shape]);
    } catch (error) {
      if (error instanceof NotFoundError) return undefined;
      throw error;
    }
  };
  return createModel({
    config: sharedJson(`golden/${path}/config.json`),
    source: path,
    weight: async (name, _shape, role) => {
      const value = await read(name);
      return value && denseWeight(denseParameter(name, value, { role }));
    },
    vector: async (name, _shape, role) => {
      const value = await read(name);
      return value && denseParameter(name, value, { role });
    },
  });
}

export async function logitsOf(model: Model, ids: readonly (readonly number[])[], view?: View): Promise<Float32Array> {
  const tokenIds = tensor2d(ids.flat(), [ids.length, ids[0]!.length], 'int32');
  const logits = forward(model, { tokenIds }, view === undefined ? {} : { view });
  const values = (await logits.data()) as Float32Array;
  tokenIds.dispose();
  logits.dispose();
  return values;
}

export const distance = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  if (a.length !== b.length) return Infinity;
  let worst = 0;
  for (let i = 0; i < a.length; i++) {
    const gap = Math.abs(a[i]! - b[i]!);
    if (!(gap <= worst)) worst = Number.isNaN(gap) ? Infinity : gap;
  }
  return worst;
};
