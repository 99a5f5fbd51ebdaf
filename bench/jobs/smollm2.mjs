/** A model of SmolLM2-135M's shape with random weights: what a job takes depends on neither its numbers nor a download. */
import shapeOfSmollm2 from '../peers/smollm2.json' with { type: 'json' };
import { createModel } from '../../packages/nn/dist/index.js';
import { denseParameter, ones, zeros } from '../../packages/tensor/dist/index.js';
import { ggufBlock } from '../../packages/weights/dist/index.js';
import { initializeModel, nf4, quantize } from '../../packages/niwaki/dist/index.js';

/** The one that the peers of other libraries read. */
export const config = shapeOfSmollm2;

/** What a job may name. */
export const devices = ['wasm', 'webgpu'];
export const bases = ['f32', 'nf4', 'q4_1'];

/** @param base 'f32', 'nf4' (the embedding stays f32, as in QLoRA) or 'q4_1' (everything, as in the file) */
export async function smollm2(base, { layers = config.num_hidden_layers } = {}) {
  const shape = { ...config, num_hidden_layers: layers };
  if (base === 'q4_1') return createModel({ config: shape, source: 'random', weight: blocks, vector });
  const model = await initializeModel(shape, { seed: 1, trainable: false });
  if (base === 'nf4') await quantize(model, nf4());
  return model;
}

const vector = async (path, shape, role) => denseParameter(path, role === 'norm' ? ones([...shape]) : zeros([...shape]), { role });

/** Codes from a fixed sequence, of scale 0.0044 and minimum -0.033: about what initialization gives. */
async function blocks(path, shape, role) {
  if (role === 'head') return undefined;
  const words = new Uint32Array(((shape[0] * shape[1]) / 32) * 5);
  for (let i = 0, state = 1; i < words.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    words[i] = i % 5 === 0 ? 0xa8391c81 : state;
  }
  return ggufBlock(path.replace(/\.weight$/, ''), shape, 'Q4_1', new Uint8Array(words.buffer));
}

/** Ids that repeat with every run. */
export const ids = (count, seed = 1) =>
  Array.from({ length: count }, (_, i) => (Math.imul(i + seed, 2654435761) >>> 0) % config.vocab_size);

export const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];
