import { expect, it } from 'vitest';
import {
  add,
  attention,
  concat,
  createDraw,
  dispose,
  integerMatMul,
  loraTail,
  memory,
  mul,
  noise,
  packedMatMul,
  putRows,
  record,
  rmsNorm,
  ShapeError,
  StateError,
  swiglu,
  tensor1d,
  tensor2d,
  tidy,
  unrepeatable,
  zeros,
  type PackedShape,
  type PackedTensors,
  type Recording,
  type Tensor,
  type Tensor1D,
  type Tensor2D,
  type Tensor4D,
} from '@niwaki/tensor';
import { packedFixture } from './packed-fixture.ts';
import { upload } from './parity.ts';

const random = <T extends Tensor>(shape: readonly number[], seed: number): T =>
  tidy(() => noise([...shape], createDraw(seed, 0).at('x'), 'gaussian')) as T;

const bitsOf = async (tensor: Tensor): Promise<Uint32Array> => {
  const values = await tensor.data();
  return new Uint32Array(values.buffer.slice(values.byteOffset, values.byteOffset + values.byteLength));
};

/** A function of x [rows, width] with what it reads besides, for a few widths. */
interface Case {
  readonly rows: number;
  readonly width: number;
  readonly held: Readonly<Record<string, Tensor>>;
  run(x: Tensor2D): Tensor2D;
}

function packedCase(format: 'Q4_1' | 'codebook4' | 'affine', rows: number, width: number, activations?: 'int8'): Case {
  const fixture = packedFixture(format, 65, width, 32);
  const parts = upload(fixture.parts) as PackedTensors & Record<string, Tensor>;
  const shape: PackedShape = format === 'affine' ? { ...fixture.shape, bits: 4 } : fixture.shape;
  return {
    rows,
    width,
    held: parts,
    run: (x) => (activations === undefined ? packedMatMul(x, parts, shape) : integerMatMul(x, parts, shape, { activations })),
  };
}

const cases: Readonly<Record<string, () => Case>> = {
  'norms, sums and products of tfjs': () => {
    const held = { weight: random<Tensor1D>([65], 1) };
    const run = (x: Tensor2D): Tensor2D => add(mul(rmsNorm(x, held.weight, { eps: 1e-5 }), 0.5), add(x, swiglu(x, x)));
    return { rows: 7, width: 65, held, run };
  },
  'the tail of an adapter': () => {
    const held = { a: random<Tensor2D>([3, 64], 1), b: random<Tensor2D>([7, 3], 2), base: random<Tensor2D>([1, 7], 3) };
    return { rows: 1, width: 64, held, run: (x) => loraTail(held.base, x, held.a, held.b, { scale: 2 }) };
  },
  'one row of Q4_1': () => packedCase('Q4_1', 1, 64),
  'many rows of Q4_1': () => packedCase('Q4_1', 7, 64),
  'one row of a codebook': () => packedCase('codebook4', 1, 64),
  'one row of a codebook, 8-bit activations': () => packedCase('codebook4', 1, 64, 'int8'),
  'one row of integers, 8-bit activations': () => packedCase('affine', 1, 64, 'int8'),
};

/** What a device that takes launches down is asked for. @param options `reads`: whether it can be read without waiting */
export function recordingSuite({ reads }: { readonly reads: boolean }): void {
  it.each(Object.keys(cases))('%s: a replay computes what the function computes', async (name) => {
    const before = memory();
    const { rows, width, held, run } = cases[name]!();
    const inputs = [4, 5, 6].map((seed) => random<Tensor2D>([rows, width], seed));
    const expected: Uint32Array[] = [];
    for (const x of inputs) {
      const y = tidy(() => run(x));
      expected.push(await bitsOf(y));
      y.dispose();
    }
    const recording = recorded({ x: inputs[0]! }, ({ x }) => ({ y: tidy(() => run(x)) }));
    expect(await bitsOf(recording.result.y)).toEqual(expected[0]);
    expect(recording.bytes).toBeGreaterThanOrEqual(4 * recording.result.y.size);

    // What others hold is not written over, and what they free is not read.
    const others = Array.from({ length: 40 }, (_, i) => random([rows, i % 2 === 0 ? width : 65], 10 + i));
    const theirs = await Promise.all(others.map(bitsOf));
    const count = memory();
    for (const i of [1, 2, 0, 2]) {
      recording.replay({ x: inputs[i]! });
      expect(await bitsOf(recording.result.y)).toEqual(expected[i]);
    }
    expect(memory().numTensors).toBe(count.numTensors);
    expect(memory().numDataBuffers).toBe(count.numDataBuffers);
    expect(await Promise.all(others.map(bitsOf))).toEqual(theirs);

    recording.dispose();
    recording.dispose();
    dispose([...others, ...inputs, ...Object.values(held)]);
    expect(memory().numTensors).toBe(before.numTensors);
    expect(memory().numDataBuffers).toBe(before.numDataBuffers);
  });

  it('writes rows where the replay says, into memory that others hold', async () => {
    const before = memory().numTensors;
    // On the device: what the host still has is not written over there.
    let cache = tidy(() => mul(random<Tensor4D>([1, 9, 2, 4], 1), 0)) as Tensor4D;
    const bounds = (to: number): Tensor2D => tensor2d([to], [1, 1], 'int32');
    const step = (row: Tensor4D, at: Tensor1D, to: Tensor2D): Tensor => {
      const next = putRows(cache, row, at, { lead: 1, owned: true });
      cache.dispose();
      cache = next;
      return tidy(() => attention(row, cache, cache, { from: zeros([1, 1], 'int32') as Tensor2D, to }, { scale: 0.5 }));
    };
    const inputsOf = (i: number): { row: Tensor4D; at: Tensor1D; to: Tensor2D } => ({
      row: random<Tensor4D>([1, 1, 2, 4], i),
      at: tensor1d([i], 'int32'),
      to: bounds(i + 2),
    });
    const first = inputsOf(0);
    const recording = recorded(first, ({ row, at, to }) => ({ y: step(row, at, to) }));
    const rows = [first.row];
    dispose([first.at, first.to]);
    for (let i = 1; i < 8; i++) {
      const inputs = inputsOf(i);
      recording.replay(inputs);
      rows.push(inputs.row);
      const expected = tidy(() => {
        const keys = concat([zeros([1, 1, 2, 4]) as Tensor4D, ...rows], 1);
        return attention(inputs.row, keys, keys, { from: bounds(0), to: inputs.to }, { scale: 0.5 });
      });
      const [found, wanted] = [await recording.result.y.data(), await expected.data()];
      for (const [j, value] of wanted.entries()) expect(found[j]).toBeCloseTo(value, 5);
      dispose([expected, inputs.at, inputs.to]);
    }
    recording.dispose();
    dispose([cache, ...rows]);
    expect(memory().numTensors).toBe(before);
  });

  it('is none where the host has a part in it, and leaves nothing behind', async () => {
    const before = memory();
    const x = random<Tensor2D>([3, 5], 1);
    const kept: Tensor[] = [];
    const makes: Readonly<Record<string, (x: Tensor2D) => Tensor>> = {
      ...(reads && { 'reads a value': (own: Tensor2D) => mul(own, (own.dataSync() as Float32Array)[0]!) }),
      'reads what changes': (own) => {
        unrepeatable();
        return mul(own, 2);
      },
      'keeps more than it gives': (own) => {
        kept.push(mul(own, 3));
        return mul(own, 2);
      },
    };
    for (const make of Object.values(makes)) expect(record({ x }, ({ x: own }) => ({ y: make(own) }))).toBeUndefined();
    const failing = (): { y: Tensor } => {
      throw new RangeError('no');
    };
    expect(() => record({ x }, failing)).toThrow(RangeError);
    const nested = (own: Tensor2D): { y: Tensor } => ({ y: record({ x: own }, () => ({ y: mul(own, 2) }))!.result.y });
    expect(() => record({ x }, ({ x: own }) => nested(own))).toThrow(StateError);
    // After each of these the device is as it was.
    const y = mul(x, 2);
    expect(await y.data()).toEqual((await x.data()).map((value) => 2 * value));
    dispose([x, y, ...kept]);
    expect(memory().numTensors).toBe(before.numTensors);
    expect(memory().numDataBuffers).toBe(before.numDataBuffers);
  });

  it('refuses inputs of another shape and a replay after its end', () => {
    const [x, other] = [random<Tensor2D>([3, 5], 1), random<Tensor2D>([5, 3], 2)];
    const recording = recorded({ x }, ({ x: own }) => ({ y: mul(own, 2) }));
    expect(() => recording.replay({ x: other })).toThrow(ShapeError);
    expect(() => recording.replay({})).toThrow(/'x' was recorded as float32 \[3,5\], got nothing/);
    recording.dispose();
    expect(() => recording.replay({ x })).toThrow(StateError);
    dispose([x, other]);
  });
}

function recorded<I extends Readonly<Record<string, Tensor>>, T extends Readonly<Record<string, Tensor>>>(
  inputs: I,
  make: (own: I) => T,
): Recording<T> {
  const recording = record(inputs, make);
  if (recording === undefined) throw new Error('the device records nothing of this');
  return recording;
}
