/**
 * AdamW on the wasm device: state in 8 bits by one op against decoding, adam and encoding one after the other, and an update
 * over what it owns against one beside it. Both sides give the same bits.
 */
import { init } from '../../packages/backend/dist/index.js';
import {
  adamOp,
  codedAdamOp,
  commitUpdateOp,
  quantizeBlocks,
  runOp,
  scalar,
  tensor,
  tidy,
  zeros,
} from '../../packages/tensor/dist/index.js';
import { against } from '../against.mjs';

const size = 1 << 20;
const adam = { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
const attributes = { ...adam, blockSize: 256, guard: true, overwrite: false };

/** Numbers of several decades. */
const wave = (phase) => Float32Array.from({ length: size }, (_, i) => Math.sin(phase + 1.3 * i) * 10 ** -((i * 7) % 5));

/** Moments as a few steps leave them. */
function inputsOf() {
  return tidy(() => {
    const [momentum, variance] = [true, false].map((signed) => quantizeBlocks(zeros([size]), { signed }));
    let inputs = {
      gradient: tensor(wave(0)),
      momentumWords: momentum.words,
      momentumScales: momentum.scales,
      varianceWords: variance.words,
      varianceScales: variance.scales,
      factors: tensor([0.1, 0.001, 1]),
    };
    for (let step = 1; step < 4; step++) {
      const [, momentumWords, momentumScales, varianceWords, varianceScales] = runOp(codedAdamOp, inputs, attributes);
      inputs = { ...inputs, gradient: tensor(wave(step)), momentumWords, momentumScales, varianceWords, varianceScales };
    }
    return inputs;
  });
}

const row = (threads, floor) => ({
  name: `wasm adamw, 8-bit state, 1M entries, ${threads} thread${threads > 1 ? 's' : ''}`,
  floor,
  unit: 'the speed of the three ops',
  device: 'wasm',
  threads,
  measure: async () => {
    const use = () => init({ device: 'wasm', threads });
    await use();
    const inputs = inputsOf();
    const side = (once) => ({ use, once: () => tidy(() => void once()) });
    const result = await against(
      side(() => runOp(codedAdamOp, inputs, attributes)),
      side(() => codedAdamOp.reference(inputs, attributes)),
      { turns: 20, threads },
    );
    for (const each of Object.values(inputs)) each.dispose();
    return result;
  },
});

/** From a gradient to the new value. */
function update({ old, ok, ...inputs }, overwrite) {
  const [direction] = runOp(adamOp, { ...inputs, ok }, { ...adam, overwrite });
  runOp(commitUpdateOp, { old, update: direction, ok }, { keep: 0.999, scale: -1e-3, overwrite });
}

/** On one thread, by the time that it computed: on more, memory that a neighbor reads decides. */
const inPlace = {
  name: 'wasm adamw in place, 1M entries',
  floor: 1,
  unit: 'the speed of new tensors',
  device: 'wasm',
  threads: 1,
  measure: async () => {
    const use = () => init({ device: 'wasm', threads: 1 });
    await use();
    const sides = [true, false].map((overwrite) => {
      const [gradient, momentum, old] = [0, 1, 2].map((phase) => tensor(wave(phase)));
      const variance = tensor(wave(3).map((v) => v * v));
      const inputs = { gradient, momentum, variance, correction1: scalar(0.19), correction2: scalar(0.002), old, ok: scalar(1) };
      return { inputs, use, once: () => tidy(() => update(inputs, overwrite)) };
    });
    const result = await against(...sides, { turns: 40, threads: 1 });
    for (const { inputs } of sides) for (const each of Object.values(inputs)) each.dispose();
    return result;
  },
};

export const rows = [row(1, 2.5), row(2, 2.5), inPlace];
