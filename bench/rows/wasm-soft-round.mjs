/** What CBQ fits, on the wasm device: a matrix between its codes, its gradients and what is undecided in it, against the composed references. */
import { init } from '../../packages/backend/dist/index.js';
import { runOp, softRoundGradOp, softRoundOp, tensor, tidy, undecidedGradOp, undecidedOp } from '../../packages/tensor/dist/index.js';
import { against } from '../against.mjs';

const [groups, size] = [4096, 64];
const wave = (shape, scale, phase) => {
  const count = shape.reduce((product, side) => product * side, 1);
  return tensor(
    Float32Array.from({ length: count }, (_, i) => scale * Math.sin(phase + 1.3 * i)),
    shape,
  );
};

const row = (threads, floor) => ({
  name: `wasm soft rounding, ${groups} groups of ${size}, ${threads} thread${threads > 1 ? 's' : ''}`,
  floor,
  unit: 'the speed of single ops',
  device: 'wasm',
  threads,
  measure: async () => {
    const use = () => init({ device: 'wasm', threads });
    await use();
    const standing = {
      w: wave([groups, size], 0.1, 1),
      logits: wave([groups, size], 2, 2),
      scales: tensor(Float32Array.from({ length: groups }, () => 0.07)),
    };
    const codes = { ...standing, zeros: tensor(Float32Array.from({ length: groups }, () => 2)) };
    const [dy, each] = [wave([groups, size], 1, 3), wave([groups], 1, 4)];
    const all = (run) => ({
      use,
      once: () =>
        tidy(() => {
          run(softRoundOp, codes, { most: 3 });
          run(softRoundGradOp, { dy, ...codes }, { most: 3 });
          run(undecidedOp, standing, { sharpness: 5 });
          run(undecidedGradOp, { dy: each, ...standing }, { sharpness: 5 });
        }),
    });
    const result = await against(
      all(runOp),
      all((op, inputs, attributes) => op.reference(inputs, attributes)),
      { turns: 20, threads },
    );
    for (const given of [dy, each, ...Object.values(codes)]) given.dispose();
    return result;
  },
});

export const rows = [row(1, 4), row(2, 4)];
