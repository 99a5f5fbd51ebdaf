import { describe, expect, it } from 'vitest';
import {
  ConfigError,
  createDraw,
  denseParameter,
  FormatError,
  gradientsOf,
  matMul,
  memory,
  mul,
  noise,
  onesLike,
  openMemoryLedger,
  recordTape,
  ShapeError,
  softRoundOp,
  sum,
  tensor2d,
  tidy,
  zeros,
  type Parameter,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import { getBackend, getKernel } from '@tensorflow/tfjs-core';
import {
  affineStep,
  createCall,
  denseWeight,
  disposeWeight,
  fakeQuant,
  weightBytes,
  type Call,
  type FakeQuant,
  type FakeQuantOptions,
  type FakeQuantParts,
} from '../src/index.ts';

type Options = Omit<FakeQuantOptions, 'grid'> & Partial<Pick<FakeQuantOptions, 'grid'>>;

/** A matrix and its soft form: steps 1 and zeros in the middle unless given. */
function fake(rows: number[][], rounding: FakeQuantParts['rounding'], options: Options, parts: Partial<FakeQuantParts> = {}): FakeQuant {
  const base = denseWeight(denseParameter('m.weight', tensor2d(rows), { role: 'matrix' }));
  const groups = (rows.length * rows[0]!.length) / options.groupSize;
  const scales = Float32Array.from({ length: groups }, () => 1);
  const zero = Uint8Array.from(scales, () => 2 ** (options.bits - 1));
  return fakeQuant('m', base, { scales, zeros: zero, rounding, ...parts }, { grid: 'asymmetric', ...options });
}

const matrix = (rows: number[][]): Tensor2D => tensor2d(rows);
const numbers = async (t: Tensor): Promise<number[]> => {
  const values = [...(await t.data())];
  t.dispose();
  return values;
};
const expectClose = (given: readonly number[], expected: readonly number[], digits = 5): void => {
  expect(given).toHaveLength(expected.length);
  for (const [i, value] of given.entries()) expect(value).toBeCloseTo(expected[i]!, digits);
};

/** Gradients of the sum of what `value` gives, by part. */
async function gradients(
  weight: FakeQuant,
  names: readonly string[],
  value: (watched: ReadonlyMap<Parameter, Tensor>) => Tensor,
): Promise<number[][]> {
  const watched = new Map(names.map((name) => [weight.parts[name]!, weight.parts[name]!.read()]));
  const found = tidy(
    () =>
      gradientsOf(
        () => value(watched),
        [...watched.values()],
        (of) => [{ of, value: onesLike(of) }],
      ).gradients as Tensor[],
  );
  return Promise.all(found.map(numbers));
}

// A fraction of one half starts at V₀ = 0: here V is the logit itself.
const halves = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5];

describe('the rounding of an entry', () => {
  it('follows the rectified sigmoid, exactly 0 and 1 from ln 11 on', async () => {
    const edge = Math.log(11) + 1e-4;
    const weight = fake([halves], matrix([[-3, -2, -1, 0, 1, 2, 3, edge]]), { bits: 4, groupSize: 8 });
    const up = await numbers(weight.roundedUp());
    expectClose(up, [0, 0.043044, 0.22273, 0.5, 0.77727, 0.956956, 1, 1]);
    expect([up[0], up[6], up[7]]).toEqual([0, 1, 1]);
    // d h / dV is 0 beyond: no product moves it.
    const [moved] = await gradients(weight, ['rounding'], (watched) => {
      const x = tensor2d([[1, 1, 1, 1, 1, 1, 1, 1]]);
      return weight.apply(x, createCall({ batch: {}, watched }));
    });
    expect([moved![0], moved![6], moved![7]]).toEqual([0, 0, 0]);
    expect(moved![3]).toBeCloseTo(0.3, 6);
    disposeWeight(weight);
  });

  it('starts where the matrix is, and is undone by the logit of its fraction', async () => {
    const fractions = [0.1, 0.25, 0.5, 0.75, 0.9, 0, 0.9999, 0.3];
    const weight = fake([fractions], zeros([1, 8]) as Tensor2D, { bits: 4, groupSize: 8 });
    expectClose(await numbers(weight.roundedUp()), [0.1, 0.25, 0.5, 0.75, 0.9, 1e-4, 0.9999, 0.3]);
    disposeWeight(weight);
    const logits = [1.609438, 0.887303, 0, -0.887303, -1.609438];
    const back = fake([[...fractions.slice(0, 5), 0, 0, 0]], matrix([[...logits, 0, 0, 0]]), { bits: 4, groupSize: 8 });
    expectClose((await numbers(back.roundedUp())).slice(0, 5), [0.5, 0.5, 0.5, 0.5, 0.5], 6);
    disposeWeight(back);
  });

  it('decided, is rounding to the nearest code, halves up', async () => {
    const row = [-3.2, -0.5, 0.49, 0.5, 1.6, 6.9, 9, -20];
    const weight = fake([row], { a: zeros([1, 2]) as Tensor2D, b: zeros([2, 8]) as Tensor2D }, { bits: 4, groupSize: 8 });
    // Soft: the matrix itself where its codes reach, and their ends beyond.
    expectClose(await numbers(weight.dense()), [-3.2, -0.5, 0.49, 0.5, 1.6, 6.9, 7, -8], 4);
    const settled = await weight.settle();
    expect(await numbers(settled.dense())).toEqual([-3, 0, 0, 1, 2, 7, 7, -8]);
    disposeWeight(settled);
    disposeWeight(weight);
  });

  it('weighs what is undecided, and pushes it to an end', async () => {
    const h = [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1];
    const expected = { 20: [0, 0.988471, 0.999999, 1, 0.999999, 0.988471, 0], 2: [0, 0.36, 0.75, 1, 0.75, 0.36, 0] };
    // V for a wanted h over a fraction of one half; 0 and 1 from any logit beyond ln 11.
    const logit = (value: number): number => (value === 0 ? -9 : value === 1 ? 9 : -Math.log(1.2 / (value + 0.1) - 1));
    for (const sharpness of [20, 2] as const) {
      for (const [i, value] of h.entries()) {
        const weight = fake([halves], matrix([halves.map(() => logit(value))]), { bits: 4, groupSize: 8 });
        const mean = tidy(() => weight.undecided(createCall({ batch: {} }), sharpness));
        expect((await numbers(mean))[0]).toBeCloseTo(expected[sharpness][i]!, 5);
        disposeWeight(weight);
      }
    }
    const weight = fake([halves], matrix([[-1, 0.5, 1, 2, 0, 0, 0, 0]]), { bits: 4, groupSize: 8 });
    const [found] = await gradients(weight, ['rounding'], (watched) => weight.undecided(createCall({ batch: {}, watched }), 2));
    expectClose(
      found!.map((value) => 8 * value),
      [0.523341, -0.331527, -0.523341, -0.460584, 0, 0, 0, 0],
    );
    disposeWeight(weight);
  });
});

const normal = (name: string, shape: [number, number]): Tensor2D => noise(shape, createDraw(3, 0).at(name), 'gaussian') as Tensor2D;

/** Soft and low-rank, over normal values of 2 bits in groups of 8. */
async function random(): Promise<FakeQuant> {
  const [a, b] = [normal('a', [6, 3]), normal('b', [3, 16])];
  const w = normal('w', [6, 16]);
  const rows = (await w.array()) as number[][];
  w.dispose();
  const steps = rows.flatMap((row) => [0, 8].map((from) => affineStep(row, [from, from + 8], { bits: 2, grid: 'asymmetric' })));
  return fake(
    rows,
    { a, b },
    { bits: 2, groupSize: 8, bound: 2 },
    {
      scales: Float32Array.from(steps, ({ scale }) => scale * 0.8),
      zeros: Uint8Array.from(steps, ({ zero }) => zero),
      inputScales: Float32Array.from({ length: 16 }, (_, k) => 1 + k / 16),
    },
  );
}

describe('a fake-quantized matrix', () => {
  it('multiplies as the dense one it says it is', async () => {
    const before = memory().numTensors;
    const weight = await random();
    const x = normal('x', [5, 16]);
    const [given, expected] = tidy(() => [weight.apply(x, createCall({ batch: {} })), matMul(x, weight.dense(), false, true)]);
    expectClose(await numbers(given), await numbers(expected));
    const some = await numbers(weight.dense([2, 4]));
    expect(some).toEqual((await numbers(weight.dense())).slice(32, 64));
    x.dispose();
    disposeWeight(weight);
    expect(memory().numTensors).toBe(before);
  });

  it('has the gradients of finite differences for the rounding', async () => {
    const weight = await random();
    const x = normal('x', [5, 16]);
    const g = normal('g', [5, 6]);
    const value = (watched?: ReadonlyMap<Parameter, Tensor>): Tensor =>
      sum(mul(weight.apply(x, createCall({ batch: {}, ...(watched && { watched }) })), g));
    const penalty = (watched?: ReadonlyMap<Parameter, Tensor>): Tensor =>
      weight.undecided(createCall({ batch: {}, ...(watched && { watched }) }), 3);
    for (const of of [value, penalty]) {
      const found = await gradients(weight, ['rounding_a', 'rounding_b'], of);
      for (const [i, name] of ['rounding_a', 'rounding_b'].entries()) {
        const parameter = weight.parts[name]!;
        const start = [...(await parameter.read().data())];
        const [direction] = [start.map((_, k) => (k % 3 === 0 ? 1 : -1))];
        const at = async (step: number): Promise<number> => {
          parameter.write(
            tensor2d(
              start.map((v, k) => v + step * direction[k]!),
              parameter.shape as [number, number],
            ),
          );
          return (await numbers(tidy(() => of())))[0]!;
        };
        const slope = ((await at(2e-3)) - (await at(-2e-3))) / 4e-3;
        const expected = found[i]!.reduce((total, v, k) => total + v * direction[k]!, 0);
        expect(Math.abs(slope - expected)).toBeLessThan(3e-2 * Math.max(Math.abs(expected), 0.01));
        await at(0);
      }
    }
    x.dispose();
    g.dispose();
    disposeWeight(weight);
  });

  it('moves a step by what it leaves: nothing at the start, the code where it is cut', async () => {
    // Places -2.6, -0.3, 0.2, 0.7 and beyond the codes -4..3: -9, 7.
    const row = [-2.6, -0.3, 0.2, 0.7, -9, 7, 0, 0];
    const weight = fake([row], matrix([[0, 1, 0, 0, 0, 0, 0, 0]]), { bits: 3, groupSize: 8 });
    // 1.2 / (1 + e⁻¹ · 0.4 / 0.8) - 0.1, for the fraction 0.7.
    const h = 0.913564;
    for (const [k, expected] of [0, -1 + h + 0.3, 0, 0, -4, 3, 0, 0].entries()) {
      const [step] = await gradients(weight, ['soft_scales'], (watched) =>
        weight.apply(tensor2d([row.map((_, i) => (i === k ? 1 : 0))]), createCall({ batch: {}, watched })),
      );
      expect(step![0]).toBeCloseTo(expected, 3);
    }
    disposeWeight(weight);
  });

  it('settles on what it is, bit for bit, once every entry is decided', async () => {
    const weight = await random();
    const b = weight.parts['rounding_b']!;
    b.write(tidy(() => mul(b.read(), 400)));
    const up = await numbers(weight.roundedUp());
    expect(up.every((h) => h === 0 || h === 1)).toBe(true);
    expect(new Set(up).size).toBe(2);
    const settled = await weight.settle();
    expect(settled.kind).toBe('affine');
    expect(await numbers(settled.dense())).toEqual(await numbers(weight.dense()));
    disposeWeight(settled);
    disposeWeight(weight);
  });

  it('keeps x from forward to backward, and no matrix', async () => {
    const weight = fake(
      Array.from({ length: 64 }, (_, r) => Array.from({ length: 96 }, (__, c) => Math.sin(r + c * c))),
      { a: normal('a', [64, 5]), b: normal('b', [5, 96]) },
      { bits: 2, groupSize: 32 },
    );
    // The matrix and 5 · (64 + 96) entries of rounding, a step and a zero a group.
    expect(weightBytes(weight)).toBe(4 * (64 * 96 + 5 * 160 + 2 * 192));
    const ledger = openMemoryLedger();
    const x = normal('x', [2, 96]);
    const before = ledger.bytes();
    const watched = new Map([weight.parts['rounding_a']!, weight.parts['soft_scales']!].map((part) => [part, part.read()]));
    const tape = recordTape(() => weight.apply(x, createCall({ batch: {}, watched })));
    // y, and nothing of the matrix's 24,576 bytes.
    expect(ledger.bytes() - before).toBe(4 * 2 * 64);
    tape.dispose();
    for (const t of [tape.value, x]) t.dispose();
    ledger.dispose();
    disposeWeight(weight);
  });

  it.each([
    [
      'a product',
      (weight: FakeQuant, call: Call) => weight.apply(zeros([1, 512]) as Tensor2D, call),
      { kernels: [1, 2], references: [8, 15] },
    ],
    ['what is undecided', (weight: FakeQuant, call: Call) => weight.undecided(call, 3), { kernels: [0, 1], references: [9, 12] }],
  ] as const)('makes %s in few copies of the matrix', (_, value, most) => {
    const [forward, backward] = getKernel(softRoundOp.kernelName, getBackend()) === undefined ? most.references : most.kernels;
    const weight = fake(
      Array.from({ length: 256 }, () => Array.from({ length: 512 }, (__, c) => Math.sin(c))),
      zeros([256, 512]) as Tensor2D,
      { bits: 2, groupSize: 64 },
    );
    const ledger = openMemoryLedger();
    const watched = new Map([weight.steps, ...weight.rounding].map((part) => [part, part.read()]));
    const copies = (before: number): number => (ledger.peak() - before) / (4 * 256 * 512);
    let before = ledger.bytes();
    ledger.resetPeak();
    const tape = recordTape(() => value(weight, createCall({ batch: {}, watched })));
    expect(copies(before)).toBeLessThan(forward + 0.1);
    before = ledger.bytes();
    ledger.resetPeak();
    tidy(() => void tape.pull([...watched.values()], [{ of: tape.value, value: onesLike(tape.value) }]));
    expect(copies(before)).toBeLessThan(backward + 0.1);
    tape.value.dispose();
    ledger.dispose();
    disposeWeight(weight);
  });

  it('refuses parts that do not fit', () => {
    const rounding = (): Tensor2D => zeros([1, 8]) as Tensor2D;
    const made = [rounding(), rounding(), rounding(), zeros([1, 2]) as Tensor2D, zeros([3, 8]) as Tensor2D];
    expect(() => fake([halves], made[0]!, { bits: 5 as never, groupSize: 8 })).toThrow(/bits must be one of/);
    expect(() => fake([halves], made[1]!, { bits: 4, groupSize: 8, bound: 0 })).toThrow(ConfigError);
    expect(() => fake([halves], made[2]!, { bits: 4, groupSize: 8 }, { scales: new Float32Array(2) })).toThrow(FormatError);
    expect(() => fake([halves], { a: made[3]!, b: made[4]! }, { bits: 4, groupSize: 8 })).toThrow(ShapeError);
  });
});
