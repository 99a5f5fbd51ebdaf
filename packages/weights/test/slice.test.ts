import { describe, expect, it } from 'vitest';
import {
  createDraw,
  denseParameter,
  gradientsOf,
  matMul,
  memory,
  noise,
  tensor2d,
  tidy,
  type Parameter,
  type Tensor2D,
} from '@niwaki/tensor';
import { choosePlaces, createCall, sliceWeight, type Weight } from '../src/index.ts';

const random = (name: string, shape: [number, number]): Tensor2D => noise(shape, createDraw(3, 0).at(name), 'gaussian') as Tensor2D;
const [out, width, rows] = [7, 65, 5];

async function read(tensor: { data(): Promise<ArrayLike<number>>; dispose(): void }): Promise<number[]> {
  const values = Array.from(await tensor.data());
  tensor.dispose();
  return values;
}

const furthest = (a: readonly number[], b: readonly number[]): number => {
  expect(a.length).toBe(b.length);
  return Math.max(...a.map((value, i) => Math.abs(value - b[i]!)));
};

interface Case {
  readonly weight: Weight;
  readonly values: Parameter;
  free(): void;
}

function made(axis: 'columns' | 'rows', places: readonly number[], scale?: number): Case {
  const shape: [number, number] = axis === 'columns' ? [out, places.length] : [places.length, width];
  const values = denseParameter('v', random('v', shape), { role: 'values', trainable: true });
  const chosen = choosePlaces('c', places, axis === 'columns' ? width : out);
  const weight = sliceWeight({ shape: [out, width], axis, values, chosen, ...(scale !== undefined && { scale }) });
  return { weight, values, free: () => Object.values(weight.parts).forEach((part) => part.dispose()) };
}

describe.each<['columns' | 'rows', string, number[]]>([
  ['columns', 'in an order of their own', [40, 3, 64, 0]],
  ['columns', 'in a row', [30, 31, 32]],
  ['columns', 'at the end, one', [64]],
  ['columns', 'all of them', Array.from({ length: width }, (_, i) => i)],
  ['rows', 'in an order of their own', [6, 0, 3]],
  ['rows', 'in a row', [0, 1]],
])('a matrix of some %s, %s', (axis, _, places) => {
  it('is zero elsewhere, by ranges of rows too', async () => {
    const before = memory().numTensors;
    const { weight, values, free } = made(axis, places, 0.5);
    const whole = await read(weight.dense());
    const v = Array.from(await values.read().data());
    const expected = Array.from({ length: out * width }, (__, e) => {
      const [row, column] = [Math.floor(e / width), e % width];
      const at = places.indexOf(axis === 'columns' ? column : row);
      if (at < 0) return 0;
      return v[axis === 'columns' ? row * places.length + at : at * width + column]! / 2;
    });
    expect(whole).toEqual(expected);
    expect(await read(weight.dense([2, 5]))).toEqual(expected.slice(2 * width, 5 * width));
    free();
    expect(memory().numTensors).toBe(before);
  });

  it('multiplies as its dense form does, forward and back, trained and frozen', async () => {
    const before = memory().numTensors;
    const { weight, values, free } = made(axis, places);
    const [x, dy] = [random('x', [rows, width]), random('dy', [rows, out])];
    const expected = await read(tidy(() => matMul(x, weight.dense(), false, true)));
    const dx = await read(tidy(() => matMul(dy, weight.dense())));
    const whole = await read(tidy(() => matMul(dy, x, true, false)));
    const dv = places.flatMap((place, at) =>
      axis === 'columns'
        ? Array.from({ length: out }, (__, row) => [row * places.length + at, whole[row * width + place]!] as const)
        : Array.from({ length: width }, (__, column) => [at * width + column, whole[place * width + column]!] as const),
    );
    for (const trained of [true, false]) {
      const call = createCall({ batch: {}, ...(trained && { watched: new Map([[values, values.read()]]) }) });
      const { value, gradients } = gradientsOf(
        () => weight.apply(x, call),
        [x, values.read()],
        (of) => [{ of, value: dy }],
      );
      expect(furthest(await read(value), expected)).toBeLessThan(1e-5);
      expect(furthest(await read(gradients[0]!), dx)).toBeLessThan(1e-5);
      expect(gradients[1] !== undefined).toBe(trained);
      const found = gradients[1] === undefined ? [] : await read(gradients[1]);
      expect(furthest(found, trained ? dv.sort(([a], [b]) => a - b).map(([, g]) => g) : [])).toBeLessThan(1e-5);
    }
    x.dispose();
    dy.dispose();
    free();
    expect(memory().numTensors).toBe(before);
  });
});

it('holds no places where they follow one another', () => {
  const [scattered, following] = [made('columns', [3, 5, 4]), made('columns', [3, 4, 5])];
  expect(Object.values(scattered.weight.parts).reduce((sum, part) => sum + part.bytes(), 0)).toBe(4 * (3 * out + 3 + width));
  expect(Object.values(following.weight.parts).reduce((sum, part) => sum + part.bytes(), 0)).toBe(4 * 3 * out);
  scattered.free();
  following.free();
});

it('refuses places that are not there or twice, and values of another shape', () => {
  for (const places of [[], [1, 1], [7], [-1], [0.5]])
    expect(() => choosePlaces('c', places, 7)).toThrow(/distinct whole numbers from 0 to 6/);
  const values = denseParameter('v', tensor2d([1, 2], [1, 2]), { role: 'values' });
  const chosen = choosePlaces('c', [1, 2], 4);
  expect(() => sliceWeight({ shape: [3, 4], axis: 'columns', values, chosen })).toThrow(
    /2 columns of \[3, 4\] hold \[3,2\], 'v' is \[1,2\]/,
  );
  expect(() => sliceWeight({ shape: [4, 2], axis: 'columns', values, chosen })).toThrow(/hold/);
  values.dispose();
});
