/** AdamW's 8-bit state on the wasm device: one op against decoding, adam and encoding one after the other, which give the same bits. */
import { init } from '../../packages/backend/dist/index.js';
import { codedAdamOp, quantizeBlocks, runOp, tensor, tidy, zeros } from '../../packages/tensor/dist/index.js';
import { against } from '../against.mjs';

const size = 1 << 20;
const attributes = { beta1: 0.9, beta2: 0.999, eps: 1e-8, blockSize: 256, guard: true };

/** Moments as a few steps leave them: numbers of several decades in every block. */
function inputsOf() {
  const wave = (phase) => Float32Array.from({ length: size }, (_, i) => Math.sin(phase + 1.3 * i) * 10 ** -((i * 7) % 5));
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

export const rows = [row(1, 2.5), row(2, 2.5)];
