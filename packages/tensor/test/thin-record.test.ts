import { afterAll, beforeAll, expect, it } from 'vitest';
import {
  add,
  exp,
  gelu,
  layerNorm,
  matMul,
  memory,
  mul,
  openMemoryLedger,
  recordTape,
  residualNorm,
  rmsNorm,
  swiglu,
  tensor1d,
  tensor2d,
  withGradient,
  type MemoryLedger,
  type Tape,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';

const [rows, width] = [5, 37];
const wave = (count: number, step: number): number[] => Array.from({ length: count }, (_, i) => Math.sin(step * i + 0.3));
const matrix = (step: number, shape: [number, number] = [rows, width]): Tensor2D => tensor2d(wave(shape[0] * shape[1], step), shape);

const given = {
  x: matrix(0.7),
  y: matrix(1.1),
  w: matrix(1.9, [width, 3]),
  gain: tensor1d(wave(width, 0.4)),
  shift: tensor1d(wave(width, 2.3)),
};
const xs: readonly Tensor[] = Object.values(given);
const dy = matrix(0.9, [rows, 3]);

let ledger: MemoryLedger;
beforeAll(() => {
  ledger = openMemoryLedger();
});
afterAll(() => {
  ledger.dispose();
  for (const tensor of [...xs, dy]) tensor.dispose();
});

type Forward = (inputs: typeof given) => Tensor2D;
/** A product that keeps what it is given, as that of a trained matrix does. */
const product = (x: Tensor2D, w: Tensor2D): Tensor2D => matMul(x, w);
const record = (forward: Forward): Tape<Tensor2D> => recordTape(() => forward(given));

interface Pulled {
  readonly gradients: readonly (readonly number[] | undefined)[];
  readonly freed: number;
}

function pull(tape: Tape<Tensor2D>, { thin }: { thin: boolean }): Pulled {
  const before = ledger.bytes();
  if (thin) tape.thin();
  const freed = before - ledger.bytes();
  const found = tape.pull(xs, [{ of: tape.value, value: dy }]);
  const gradients = found.map((gradient) => gradient && [...gradient.dataSync()]);
  for (const tensor of [tape.value, ...found]) tensor?.dispose();
  return { gradients, freed };
}

const eps = 1e-5;
const one = 4 * rows * width;

/** A forward that keeps the result of an op, and how many bytes of it a thin record need not. */
const forwards: Readonly<Record<string, readonly [Forward, freed: number]>> = {
  rmsNorm: [({ x, gain, w }) => product(rmsNorm(x, gain, { eps }), w), one],
  'rmsNorm, its weight frozen': [({ x, gain, w }) => product(rmsNorm(x, gain, { eps, weightGradient: false }), w), one],
  residualNorm: [({ x, gain, w }) => product(residualNorm(x, undefined, gain, { eps }).normed, w), one],
  'residualNorm of a sum': [
    ({ x, y, gain, w }) => {
      const { stream, normed } = residualNorm(x, y, gain, { eps });
      return add(product(normed, w), product(stream, w));
    },
    // Of the sum itself nothing: the norm needs it.
    one,
  ],
  layerNorm: [({ x, gain, shift, w }) => product(layerNorm(x, gain, shift, { eps }), w), one],
  swiglu: [({ x, y, w }) => product(swiglu(x, y), w), one],
  gelu: [({ x, w }) => product(gelu(x), w), one],
  'gelu by tanh': [({ x, w }) => product(gelu(x, { form: 'tanh' }), w), one],
  'a product entry by entry': [({ x, gain, w }) => product(mul(x, gain), w), one],
  'one made from another': [({ x, y, gain, w }) => product(gelu(swiglu(rmsNorm(x, gain, { eps }), y)), w), 3 * one],
  // The product over entries reads the norm as it is, the other one as a batch of one.
  'one read in two shapes': [
    ({ x, gain, w }) => {
      const normed = rmsNorm(x, gain, { eps });
      return add(product(normed, w), product(mul(normed, normed), w));
    },
    2 * one,
  ],
  // exp keeps its own result, and nobody made it again.
  'an op that does not say how': [({ x, w }) => product(exp(x), w), 0],
};

it.each(Object.entries(forwards))('%s: made again, the gradients are the same bit for bit', (_, [forward, freed]) => {
  const before = { tensors: memory().numTensors, bytes: ledger.bytes() };
  const whole = pull(record(forward), { thin: false });
  const thin = pull(record(forward), { thin: true });
  expect(thin.gradients).toEqual(whole.gradients);
  expect(thin.gradients.some((gradient) => gradient?.some((entry) => entry !== 0))).toBe(true);
  expect({ freed: thin.freed, of: whole.freed }).toEqual({ freed, of: 0 });
  expect({ tensors: memory().numTensors, bytes: ledger.bytes() }).toEqual(before);
});

it.each(Object.entries(forwards))('%s: what is made again has the bits of the forward', (_, [forward, freed]) => {
  const tape = record(forward);
  const pairs = tape.remade();
  expect(pairs.reduce((sum, [kept]) => sum + 4 * kept.size, 0)).toBe(freed);
  for (const [kept, again] of pairs) expect([...again.dataSync()]).toEqual([...kept.dataSync()]);
  tape.dispose();
  for (const tensor of [tape.value, ...pairs.map(([, again]) => again)]) tensor.dispose();
});

it('keeps what somebody else holds too: it would free nothing', () => {
  const before = ledger.bytes();
  let normed: Tensor | undefined;
  const tape = recordTape(() => {
    const found = rmsNorm(given.x, given.gain, { eps });
    normed = found;
    return { y: product(found, given.w), found };
  });
  const held = ledger.bytes();
  tape.thin();
  expect(ledger.bytes()).toBe(held);
  tape.dispose();
  for (const tensor of [tape.value.y, normed!]) tensor.dispose();
  expect(ledger.bytes()).toBe(before);
});

it('makes nothing again that no gradient asks for', () => {
  let made = 0;
  const twice = (x: Tensor2D): Tensor2D =>
    withGradient(
      [x],
      (save) => {
        save([x]);
        return mul(x, 2);
      },
      (dy) => [mul(dy, 2)],
      {
        remake: ([saved]) => {
          made++;
          return mul(saved!, 2);
        },
      },
    ) as Tensor2D;
  // Of the two branches one depends on no x that is asked for.
  const tape = record(({ x, y, w }) => add(product(twice(x), w), product(twice(y), w)));
  tape.thin();
  const [gradient] = tape.pull([given.x], [{ of: tape.value, value: dy }]);
  expect(made).toBe(1);
  for (const tensor of [tape.value, gradient!]) tensor.dispose();
});

it('leaves nothing behind when it is dropped, left in the middle, or fails to make something again', () => {
  const before = memory().numTensors;
  const forward: Forward = ({ x, y, gain, w }) => product(gelu(swiglu(rmsNorm(x, gain, { eps }), y)), w);
  const dropped = record(forward);
  dropped.thin();
  dropped.dispose();
  dropped.value.dispose();
  expect(memory().numTensors).toBe(before);

  const left = record(forward);
  left.thin();
  const parts = left.pullEach([given.w, given.y, given.x], [{ of: left.value, value: dy }]);
  const { value } = parts.next() as { value: readonly [number, Tensor] };
  expect(value[0]).toBe(0);
  parts.return();
  for (const tensor of [left.value, value[1]]) tensor.dispose();
  expect(memory().numTensors).toBe(before);

  const failing = (x: Tensor2D): Tensor2D =>
    withGradient(
      [x],
      (save) => {
        save([x]);
        return mul(x, 2);
      },
      (dy) => [dy],
      {
        remake: () => {
          throw new Error('no more');
        },
      },
    ) as Tensor2D;
  const fails = record(({ x, w }) => product(failing(gelu(x)), w));
  fails.thin();
  expect(() => fails.pull(xs, [{ of: fails.value, value: dy }])).toThrow('no more');
  fails.value.dispose();
  expect(memory().numTensors).toBe(before);
});
