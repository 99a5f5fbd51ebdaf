/** Ops of several steps on the wasm device, against the same steps as ops of their own. */
import { init } from '../../packages/backend/dist/index.js';
import {
  add,
  addNoiseOp,
  addRmsNormOp,
  attentionOp,
  commitUpdateOp,
  createDraw,
  geluGradOp,
  geluOp,
  layerNormGradOp,
  layerNormOp,
  loraGradOp,
  loraOp,
  loraProductGradOp,
  loraProductOp,
  matMul,
  mul,
  noise,
  noiseAttributes,
  rmsNormGradOp,
  rmsNormOp,
  runOp,
  scalar,
  sumSquaresOp,
  tensor,
  tidy,
} from '../../packages/tensor/dist/index.js';
import { against } from '../against.mjs';

const count = 64;
const wave = (shape, step) =>
  tensor(
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => Math.sin(step * i)),
    shape,
  );

const row = (name, floor, make) => ({
  name,
  floor,
  unit: 'the speed of single ops',
  device: 'wasm',
  threads: 1,
  measure: async () => {
    const use = () => init({ device: 'wasm', threads: 1 });
    await use();
    const { one, several, end } = make();
    const side = (run) => ({ use, once: () => tidy(() => void run()) });
    const result = await against(side(one), side(several), { turns: 60, threads: 1 });
    end();
    return result;
  },
});

/** Forward and backward, as a step of training runs them. */
function adapter(dropout) {
  const [width, out, rank, scale] = [256, 256, 8, 2];
  const address = createDraw(1, 0).at('x#dropout');
  const keep = 1 - dropout;
  const mask = dropout === 0 ? undefined : noiseAttributes([count, width], address, 'mask', { keep });
  const [x, weight, a, b, dy] = [
    [count, width],
    [out, width],
    [rank, width],
    [out, rank],
    [count, out],
  ].map((shape, i) => wave(shape, 0.3 + 0.1 * i));
  const drop = (v) => (dropout === 0 ? v : mul(v, mul(noise([count, width], address, 'mask', { keep }), 1 / keep)));
  return {
    one: () => {
      const [, inner] = runOp(loraProductOp, { x, a, b, weight }, { scale, dropout: mask, unread: false });
      runOp(loraProductGradOp, { dy, x, a, b, inner, weight }, { scale, dropout: mask });
    },
    several: () => {
      const [, inner] = runOp(loraOp, { base: matMul(x, weight, false, true), x: drop(x), a, b }, { scale, unread: false });
      const [dx] = runOp(loraGradOp, { dy, x: drop(x), a, b, inner }, { scale });
      add(matMul(dy, weight), drop(dx));
    },
    end: () => [x, weight, a, b, dy].forEach((value) => value.dispose()),
  };
}

function residual() {
  const width = 576;
  const [x, delta, dy, beside] = [0.3, 0.5, 0.7, 0.9].map((step) => wave([count, width], step));
  const weight = wave([width], 0.2);
  const [eps, weightGradient] = [1e-5, false];
  return {
    one: () => {
      const [total] = runOp(addRmsNormOp, { x, delta, weight }, { eps });
      runOp(rmsNormGradOp, { dy, x: total, weight, beside }, { eps, weightGradient });
    },
    several: () => {
      const total = add(x, delta);
      runOp(rmsNormOp, { x: total, weight }, { eps });
      add(beside, runOp(rmsNormGradOp, { dy, x: total, weight }, { eps, weightGradient })[0]);
    },
    end: () => [x, delta, dy, beside, weight].forEach((value) => value.dispose()),
  };
}

/** The kernels of some ops against their references, which are compositions of tfjs's ops. */
function kernels(make) {
  const calls = make();
  return {
    one: () => calls.forEach(([op, inputs, attributes]) => runOp(op, inputs, attributes)),
    several: () => calls.forEach(([op, inputs, attributes]) => op.reference(inputs, attributes)),
    end: () => calls.forEach(([, inputs]) => Object.values(inputs).forEach((value) => value.dispose())),
  };
}

const [rowCount, wide] = [512, 576];
const matrix = (step) => wave([rowCount, wide], step);

const layerNorms = () => [
  [layerNormOp, { x: matrix(0.3), weight: wave([wide], 0.2), bias: wave([wide], 0.4) }, { eps: 1e-5 }],
  [layerNormGradOp, { dy: matrix(0.7), x: matrix(0.3), weight: wave([wide], 0.2) }, { eps: 1e-5, weightGradient: true }],
];

const gelus = (form) => [
  [geluOp, { x: matrix(0.3) }, { form }],
  [geluGradOp, { dy: matrix(0.7), x: matrix(0.3) }, { form }],
];

const noises = () => [
  [addNoiseOp, { x: matrix(0.3), factor: scalar(1e-3) }, noiseAttributes([rowCount, wide], createDraw(1, 0).at('w'), 'gaussian')],
];

/** A token of one layer of SmolLM2 over what came before it. */
const oneQuery = () => {
  const keys = 1000;
  const [q, k, v] = [wave([1, 1, 9, 64], 0.3), wave([1, keys, 3, 64], 0.5), wave([1, keys, 3, 64], 0.7)];
  const [from, to] = [0, keys].map((bound) => tensor([bound], [1, 1], 'int32'));
  return [[attentionOp, { q, k, v, from, to }, { scale: 1 / 8 }]];
};

/** Adapters of SmolLM2: 420 matrices of 8 rows or columns. */
const endOfStep = () => {
  const factors = Array.from({ length: 420 }, (_, i) => wave([8, wide], 0.1 + i));
  return [
    [sumSquaresOp, Object.fromEntries(factors.map((x, i) => [`x${i}`, x])), {}],
    ...factors.map((old) => [
      commitUpdateOp,
      { old: old.clone(), update: old.clone(), ok: scalar(1) },
      { keep: 0.999, scale: -1e-3, overwrite: false },
    ]),
  ];
};

export const rows = [
  row('a frozen map with an adapter', 1, () => adapter(0)),
  row('a frozen map with an adapter, dropout', 1.1, () => adapter(0.1)),
  row('a residual sum and its norm', 1.1, residual),
  row('wasm, attention of one token over 1000', 4, () => kernels(oneQuery)),
  row('layer norm and its gradient', 1.5, () => kernels(layerNorms)),
  row('gelu and its gradient, erf', 1.5, () => kernels(() => gelus('erf'))),
  row('gelu and its gradient, tanh', 1.1, () => kernels(() => gelus('tanh'))),
  row('gaussian noise onto weights', 1, () => kernels(noises)),
  row('the norm of 420 gradients and their updates', 1.5, () => kernels(endOfStep)),
];
