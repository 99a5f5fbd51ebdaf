import type { Parameter, Tensor2D } from '@niwaki/tensor';
import type { Weight } from '@niwaki/weights';
import type { Model, Site, Stage } from '@niwaki/nn';
import { tinyLlama } from '../../../testing/src/tiny-llama.ts';

/** A model that is a head alone: a parameter's rows are its hidden states, [rows, in], and a weight makes logits of them. */
export async function headModel(hidden: Parameter, weight: Weight): Promise<Model> {
  const base = await tinyLlama();
  const site: Site = { path: 'lm_head', point: 'head', weight, inputId: 'h' };
  const rows: Stage = {
    path: 'rows',
    reads: [],
    writes: ['h'],
    sites: [],
    parameters: () => [hidden],
    run: (_, call) => ({ h: call.value(hidden).clone() }),
  };
  const head: Stage = {
    path: 'lm_head',
    reads: ['h'],
    writes: ['logits'],
    sites: [site],
    parameters: () => Object.values(weight.parts),
    run: ({ h }, call) => ({ logits: weight.apply(h as Tensor2D, call) }),
  };
  return { ...base, info: { ...base.info, vocabularySize: weight.shape[0] }, stages: () => [rows, head] };
}
