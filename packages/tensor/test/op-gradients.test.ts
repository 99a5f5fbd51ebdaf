import { describe, expect, it } from 'vitest';
import {
  addNoise,
  attention,
  concat,
  createDraw,
  crossEntropy,
  gelu,
  gradientsOf,
  layerNorm,
  loraTail,
  matMul,
  memory,
  mul,
  noise,
  packBytes,
  packedMatMul,
  residualNorm,
  rmsNorm,
  rope,
  scalar,
  softmax,
  sum,
  swiglu,
  tensor,
  tensor1d,
  tensor2d,
  tidy,
  type PackedShape,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
  type Tensor3D,
  type Tensor4D,
} from '../src/index.ts';

const wave = (shape: readonly number[], step: number): number[] =>
  Array.from(
    { length: shape.reduce((product, side) => product * side, 1) },
    (_, i) => Math.sin(step * i + 0.3) + 0.2 * Math.cos(3.7 * step * i),
  );

interface Case {
  readonly name: string;
  /** Shapes of the differentiable inputs. */
  readonly inputs: readonly (readonly number[])[];
  run(...inputs: Tensor[]): Tensor;
}

const sequence = (batch: number, time: number, value: (b: number, t: number) => number): Tensor2D =>
  tensor2d(
    Array.from({ length: batch * time }, (_, i) => value(Math.floor(i / time), i % time)),
    [batch, time],
    'int32',
  );

interface Bounds {
  readonly name: string;
  from(b: number, t: number): number;
  to(b: number, t: number): number;
}
const causal: Bounds = { name: 'causal', from: () => 0, to: (_, t) => t + 1 };
const boundsOf: Bounds[] = [
  causal,
  { name: 'window of 2', from: (_, t) => Math.max(0, t - 1), to: (_, t) => t + 1 },
  { name: 'padded and packed', from: (b, t) => (b === 0 ? 2 : t < 3 ? 0 : 3), to: (_, t) => t + 1 },
  { name: 'queries that see nothing', from: (b, t) => (t % 2 === b ? 3 : 0), to: (b, t) => (t % 2 === b ? 3 : t + 1) },
];
const attentionCase = (name: string, [batch, time, heads, kvHeads, d]: [number, number, number, number, number], bounds: Bounds): Case => ({
  name: `attention, ${name}`,
  inputs: [
    [batch, time, heads, d],
    [batch, time, kvHeads, d],
    [batch, time, kvHeads, d],
  ],
  run: (q, k, v) =>
    attention(
      q as Tensor4D,
      k as Tensor4D,
      v as Tensor4D,
      { from: sequence(batch, time, bounds.from), to: sequence(batch, time, bounds.to) },
      { scale: 0.6 },
    ),
});

const shape: PackedShape = { format: 'Q8_0', out: 3, in: 32, blockSize: 32 };
const blocks = Uint8Array.from({ length: 3 * 34 }, (_, i) => (i % 34 === 0 ? 0 : i % 34 === 1 ? 0x24 : (i * 37) & 255));

const both = ({ stream, normed }: ReturnType<typeof residualNorm>): Tensor => concat([stream, normed], 1);

const cases: Case[] = [
  ...[
    [1, 1],
    [3, 7],
    [5, 64],
  ].map(([rows, width]): Case => ({
    name: `rmsNorm of [${rows}, ${width}]`,
    inputs: [[rows!, width!], [width!]],
    run: (x, weight) => rmsNorm(x as Tensor2D, weight as Tensor1D, { eps: 1e-5 }),
  })),
  {
    name: 'rmsNorm with a frozen weight',
    inputs: [[3, 7]],
    run: (x) => rmsNorm(x as Tensor2D, tensor1d(wave([7], 0.9)), { eps: 1e-5, weightGradient: false }),
  },
  ...[
    [1, 1],
    [3, 7],
    [5, 64],
  ].map(([rows, width]): Case => ({
    name: `layerNorm of [${rows}, ${width}]`,
    inputs: [[rows!, width!], [width!], [width!]],
    run: (x, weight, bias) => layerNorm(x as Tensor2D, weight as Tensor1D, bias as Tensor1D, { eps: 1e-2 }),
  })),
  {
    name: 'layerNorm with a frozen weight and bias',
    inputs: [[3, 7]],
    run: (x) => layerNorm(x as Tensor2D, tensor1d(wave([7], 0.9)), tensor1d(wave([7], 0.2)), { eps: 1e-5, weightGradient: false }),
  },
  ...(['erf', 'tanh'] as const).map((form): Case => ({ name: `gelu by ${form}`, inputs: [[5, 9]], run: (x) => gelu(mul(x, 3), { form }) })),
  {
    name: 'noise added to something',
    inputs: [[3, 7]],
    run: (x) => addNoise(x, createDraw(1, 2).at('x'), 'gaussian', 0.3),
  },
  {
    name: 'swiglu',
    inputs: [
      [3, 7],
      [3, 7],
    ],
    run: (gate, up) => swiglu(gate, up),
  },
  {
    name: 'rope, with a scaling in its tables',
    inputs: [
      [5, 3, 6],
      [5, 2, 6],
    ],
    run: (q, k) =>
      concat([...rope(q as Tensor3D, k as Tensor3D, tensor2d(wave([5, 3], 0.5), [5, 3]), tensor2d(wave([5, 3], 0.8), [5, 3]))], 1),
  },
  {
    name: 'residualNorm of a sum',
    inputs: [[3, 7], [3, 7], [7]],
    run: (x, delta, weight) => both(residualNorm(x as Tensor2D, delta as Tensor2D, weight as Tensor1D, { eps: 1e-5 })),
  },
  {
    name: 'residualNorm of a stream as it is, with a frozen weight',
    inputs: [[3, 7]],
    run: (x) => both(residualNorm(x as Tensor2D, undefined, tensor1d(wave([7], 0.9)), { eps: 1e-5, weightGradient: false })),
  },
  ...boundsOf.map((bounds) => attentionCase(bounds.name, [2, 5, 4, 2, 3], bounds)),
  attentionCase('one head, one token', [1, 1, 1, 1, 1], causal),
  attentionCase('six heads on one', [1, 7, 6, 1, 5], causal),
  attentionCase('heads of their own', [2, 4, 3, 3, 8], causal),
  {
    name: 'crossEntropy with ignored rows',
    inputs: [[5, 9]],
    run: (logits) => crossEntropy(logits as Tensor2D, tensor1d([0, 8, -1, 3, -100], 'int32')),
  },
  {
    name: 'loraTail',
    inputs: [
      [4, 5],
      [4, 7],
      [2, 7],
      [5, 2],
    ],
    run: (base, x, a, b) => loraTail(base as Tensor2D, x as Tensor2D, a as Tensor2D, b as Tensor2D, { scale: 1.5 }),
  },
  { name: 'packedMatMul', inputs: [[4, 32]], run: (x) => packedMatMul(x as Tensor2D, { blocks: packBytes(blocks) }, shape) },
];

/** Central differences over `step`, of an f32 forward: half an ulp of a sum near 1 over the step, and the third derivative. */
const step = 2 ** -7;
const tolerance = 3e-3;

describe.each(cases)('the gradient of $name', ({ inputs, run }) => {
  it('is that of finite differences, in every entry of every input', () => {
    const before = memory().numTensors;
    tidy(() => {
      const xs = inputs.map((shape, i) => tensor(wave(shape, 0.37 + 0.21 * i), [...shape]));
      const output = run(...xs);
      const dy = tensor(wave(output.shape, 0.77), output.shape);
      const { gradients } = gradientsOf(
        () => run(...xs),
        xs,
        (y) => [{ of: y, value: dy }],
      );
      const loss = (values: Tensor[]): number => tidy(() => sum(mul(run(...values), dy)).dataSync()[0]!);
      for (const [i, x] of xs.entries()) {
        const given = gradients[i]!.dataSync();
        const values = x.dataSync();
        const scale = Math.max(1, ...given.map(Math.abs));
        for (let e = 0; e < values.length; e++) {
          const at = (change: number): number => {
            const moved = Float32Array.from(values);
            moved[e]! += change;
            return loss(xs.map((other, j) => (j === i ? tensor(moved, x.shape) : other)));
          };
          const expected = (at(step) - at(-step)) / (2 * step);
          if (Math.abs(given[e]! - expected) > tolerance * scale) {
            throw new Error(`input ${i}, entry ${e}: the gradient is ${given[e]}, differences give ${expected}`);
          }
        }
        expect(gradients[i]!.shape).toEqual(x.shape);
      }
    });
    expect(memory().numTensors).toBe(before);
  });
});

describe('attention', () => {
  it.each(boundsOf)('with bounds "$name" is softmax over what is seen', ({ from, to }) => {
    tidy(() => {
      const [batch, time, heads, kvHeads, d] = [2, 5, 4, 2, 3];
      const [q, k, v] = [heads, kvHeads, kvHeads].map((h, i) => tensor(wave([batch, time, h, d], 0.4 + 0.3 * i), [batch, time, h, d])) as [
        Tensor4D,
        Tensor4D,
        Tensor4D,
      ];
      const y = attention(q, k, v, { from: sequence(batch, time, from), to: sequence(batch, time, to) }, { scale: 0.6 }).arraySync();
      const [qs, ks, vs] = [q.arraySync(), k.arraySync(), v.arraySync()];
      let worst = 0;
      for (let b = 0; b < batch; b++) {
        for (let t = 0; t < time; t++) {
          for (let h = 0; h < heads; h++) {
            const kv = Math.floor(h / (heads / kvHeads));
            const seen = Array.from({ length: time }, (_, j) => j).filter((j) => j >= from(b, t) && j < to(b, t));
            const weights = seen.map((j) => Math.exp(0.6 * qs[b]![t]![h]!.reduce((s, value, c) => s + value * ks[b]![j]![kv]![c]!, 0)));
            const total = weights.reduce((s, value) => s + value, 0);
            for (let c = 0; c < d; c++) {
              const expected = seen.reduce((s, j, n) => s + (weights[n]! / total) * vs[b]![j]![kv]![c]!, 0);
              worst = Math.max(worst, Math.abs(y[b]![t]![h]![c]! - expected));
            }
          }
        }
      }
      expect(worst).toBeLessThan(1e-6);
    });
  });
});

describe('forward values', () => {
  it('of cross-entropy are minus the log of a softmax, also far from zero', () => {
    tidy(() => {
      const logits = tensor2d([1, 2, 3, 1000, 999, 990, -5, -5, -5], [3, 3]);
      const p = softmax(logits).arraySync() as number[][];
      const loss = crossEntropy(logits, tensor1d([2, 1, -1], 'int32')).dataSync();
      expect(loss[0]).toBeCloseTo(-Math.log(p[0]![2]!), 6);
      expect(loss[1]).toBeCloseTo(-Math.log(p[1]![1]!), 4);
      expect(loss[2]).toBe(0);
    });
  });

  it('of rmsNorm, swiglu and rope are those of their formulas', () => {
    tidy(() => {
      expect([...rmsNorm(tensor2d([3, 4], [1, 2]), tensor1d([2, 1]), { eps: 0 }).dataSync()]).toEqual(
        [6, 4].map((value) => expect.closeTo(value / Math.sqrt(12.5), 6)),
      );
      expect([...swiglu(tensor1d([0, 1]), tensor1d([5, 2])).dataSync()]).toEqual([0, expect.closeTo(2 / (1 + Math.exp(-1)), 6)]);
      const [turned, turnedKey] = rope(
        tensor([1, 0, 0, 2], [1, 1, 4]) as Tensor3D,
        tensor([1, 0, 0, 2], [1, 1, 4]) as Tensor3D,
        tensor2d([0, Math.cos(1)], [1, 2]),
        tensor2d([1, Math.sin(1)], [1, 2]),
      );
      expect([...turnedKey.dataSync()]).toEqual([...turned.dataSync()]);
      expect([...turned.dataSync()]).toEqual([0, -2 * Math.sin(1), 1, 2 * Math.cos(1)].map((value) => expect.closeTo(value, 6)));
    });
  });

  it('of layerNorm and gelu are those of their formulas', () => {
    tidy(() => {
      const normed = layerNorm(tensor2d([1, 2, 3, 6], [1, 4]), tensor1d([2, 1, 1, 1]), tensor1d([0, 0, 0, 5]), { eps: 0.5 });
      // Mean 3, variance 3.5.
      expect([...normed.dataSync()]).toEqual([-2, -0.5, 0, 6.5].map((value) => expect.closeTo(value, 6)));
      const x = tensor1d([-3, -1, 0, 1, 3]);
      const closeTo = (values: readonly number[]): number[] => values.map((value) => expect.closeTo(value, 6) as number);
      expect([...gelu(x).dataSync()]).toEqual(closeTo([-0.00404969, -0.15865525, 0, 0.84134475, 2.99595031]));
      expect([...gelu(x, { form: 'tanh' }).dataSync()]).toEqual(closeTo([-0.00363739, -0.158808, 0, 0.841192, 2.99636261]));
    });
  });

  it('of addNoise are the noise, times a number or a scalar, on top', () => {
    tidy(() => {
      const address = createDraw(3, 4).at('x');
      const z = noise([2, 33], address, 'gaussian').dataSync();
      const x = tensor(wave([2, 33], 0.3), [2, 33]);
      const expected = x.dataSync().map((value, i) => value + Math.fround(z[i]! * -0.5));
      for (const factor of [-0.5, scalar(-0.5)]) expect(addNoise(x, address, 'gaussian', factor).dataSync()).toEqual(expected);
    });
  });

  it('of loraTail are the base plus the scaled product', () => {
    tidy(() => {
      const [base, x, a, b] = [
        [4, 5],
        [4, 7],
        [2, 7],
        [5, 2],
      ].map((s, i) => tensor2d(wave(s, 0.3 + 0.2 * i), s as [number, number])) as [Tensor2D, Tensor2D, Tensor2D, Tensor2D];
      const expected = matMul(matMul(x, a, false, true), b, false, true)
        .dataSync()
        .map((value, i) => base.dataSync()[i]! + 1.5 * value);
      const given = loraTail(base, x, a, b, { scale: 1.5 }).dataSync();
      expect(Math.max(...given.map((value, i) => Math.abs(value - expected[i]!)))).toBeLessThan(1e-5);
    });
  });
});
