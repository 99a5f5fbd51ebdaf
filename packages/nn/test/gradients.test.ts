import { expect, it } from 'vitest';
import {
  createDraw,
  crossEntropy,
  dispose,
  fill,
  gradientsOf,
  memory,
  mul,
  noise,
  plainView,
  sum,
  tensor1d,
  tidy,
  type Parameter,
  type Scalar,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
  type View,
} from '@niwaki/tensor';
import { createCall } from '@niwaki/weights';
import { tokenBatch, type Carry, type Model, type TokenBatch } from '@niwaki/nn';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import { setOf } from './adapter-set.ts';
import { disposeBatch } from './numbers.ts';

const targets = [1, 4, 1, 5, -100, 9, 2, 6];

function lossOf(
  model: Model,
  batch: TokenBatch,
  { view = plainView, watched }: { view?: View; watched?: ReadonlyMap<Parameter, Tensor> },
): Tensor {
  const call = createCall({ batch, view, training: true, ...(watched === undefined ? {} : { watched }) });
  let carry: Carry = {};
  for (const stage of model.stages()) carry = { ...carry, ...stage.run(carry, call) };
  return sum(crossEntropy(carry['logits'] as Tensor2D, tensor1d(targets, 'int32') as Tensor1D));
}

/** A view that moves one parameter. */
const moved = (parameter: Parameter, offset: Tensor): View => ({
  of: (other) => (other === parameter ? { kind: 'offset', value: offset } : { kind: 'plain' }),
  touches: (path) => parameter.path.startsWith(path),
});

it.each([
  ['llama with tied embeddings and an adapter', { tie_word_embeddings: true }],
  ['qwen3 with head norms', { model_type: 'qwen3' }],
  ['qwen2 with biases and a window', { model_type: 'qwen2', use_sliding_window: true, sliding_window: 3, max_window_layers: 1 }],
])('the gradient of every parameter is the slope of the loss along a random direction: %s', async (_, config) => {
  const before = memory().numTensors;
  const model = await tinyLlama(config);
  model.attach(setOf('one', model.sites(['q_proj', 'down_proj', 'embed_tokens', 'lm_head'])));
  const batch = tokenBatch(
    [
      [3, 1, 4, 1],
      [5, 9, 2],
    ],
    { vocabularySize: 32 },
  );
  const parameters = [...model.parameters().values()];
  const watched = new Map<Parameter, Tensor>(parameters.map((parameter) => [parameter, parameter.read()]));
  const one = fill([], 1) as Scalar;
  const { value, gradients } = gradientsOf(
    () => lossOf(model, batch, { watched }),
    parameters.map((parameter) => parameter.read()),
    (loss) => [{ of: loss, value: one }],
  );
  for (const [i, parameter] of parameters.entries()) {
    // f32 losses of about 25 carry 2e-6; a step that keeps curvature and rounding near 1e-3 of the slope.
    const step = 0.02 / Math.sqrt(parameter.shape.reduce((product, side) => product * side, 1));
    const direction = tidy(() => noise(parameter.shape, createDraw(5, 0).at(parameter.path), 'rademacher'));
    const along = tidy(() => sum(mul(gradients[i]!, direction)));
    const ends = [step, -step].map((size) => tidy(() => lossOf(model, batch, { view: moved(parameter, mul(direction, size)) })));
    const [[slope], [up], [down]] = (await Promise.all([along, ...ends].map((tensor) => tensor.data()))) as [
      Float32Array,
      Float32Array,
      Float32Array,
    ];
    const measured = (up! - down!) / (2 * step);
    expect({ path: parameter.path, near: Math.abs(measured - slope!) < 0.02 * Math.abs(slope!) + 0.02 }).toEqual({
      path: parameter.path,
      near: true,
    });
    dispose([direction, along, ...ends]);
  }
  dispose([value, one, ...gradients.map((gradient) => gradient!)]);
  disposeBatch(batch);
  model.dispose();
  expect(memory().numTensors).toBe(before);
});
