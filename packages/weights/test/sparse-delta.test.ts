import { describe, expect, it } from 'vitest';
import {
  createDraw,
  gradientsOf,
  matMul,
  memory,
  noise,
  openMemoryLedger,
  ShapeError,
  tensor1d,
  tensor2d,
  tidy,
  type Parameter,
  type Range,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import {
  checkPlaces,
  createCall,
  entriesOf,
  flatPlaces,
  largestOf,
  packPlaces,
  placedParameters,
  sparseDelta,
  type Weight,
} from '../src/index.ts';

const draw = createDraw(4, 0);
const host = (value: Tensor): number[] => [...value.dataSync()];

function deltaAt(
  shape: readonly [number, number],
  flat: readonly number[],
  values: readonly number[],
): { weight: Weight; values: Parameter; dispose(): void } {
  const parts = placedParameters({ values: 'v', index: 'i' }, shape, {
    values: tensor1d([...values]),
    index: tensor1d(packPlaces(flat, shape), 'int32'),
  });
  return {
    weight: sparseDelta(shape, parts),
    values: parts.values,
    dispose: () => {
      parts.values.dispose();
      parts.index.dispose();
    },
  };
}

describe('a sparse delta', () => {
  it('packs places into words and back, columns above 32767 too', () => {
    const shape = [7, 65536] as const;
    const flat = [0, 65535, 65536, 3 * 65536 + 40000, 7 * 65536 - 1];
    expect([...flatPlaces(packPlaces(flat, shape), shape)]).toEqual(flat);
    expect(() => checkPlaces([65537, 2])).toThrow(ShapeError);
    expect(() => checkPlaces([65536, 32768], 'a.b')).toThrow(/2\^31/);
  });

  it('is its entries and zeros, in any order, whole and by rows', () => {
    const before = memory().numTensors;
    const { weight, dispose } = deltaAt([3, 4], [7, 0, 10], [2, 3, 5]);
    const [whole, some] = [weight.dense(), weight.dense([1, 3])];
    expect(host(whole)).toEqual([3, 0, 0, 0, 0, 0, 0, 2, 0, 0, 5, 0]);
    expect(host(some)).toEqual([0, 0, 0, 2, 0, 0, 5, 0]);
    whole.dispose();
    some.dispose();
    dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('gives x·Wᵀ, the gradient of x, and the dense gradient at its places, to whoever asked the whole of it too', () => {
    const before = memory().numTensors;
    const shape = [5, 6] as const;
    const { weight, values, dispose } = deltaAt(shape, [29, 3, 14], [0.5, -1, 2]);
    const [x, cotangent] = [noise([4, 6], draw.at('x'), 'gaussian') as Tensor2D, noise([4, 5], draw.at('dy'), 'gaussian') as Tensor2D];
    const watched = new Map([[values, values.read()]]);
    const given: number[][] = [];
    const call = createCall({
      batch: {},
      watched,
      wanted: new Set([weight]),
      onGradient: (of, gradient) => {
        expect(of).toBe(weight);
        given.push(host(gradient()), host(gradient([1, 3])));
      },
    });
    const { value: y, gradients } = gradientsOf(
      () => weight.apply(x, call),
      [x, values.read()],
      (of) => [{ of, value: cotangent }],
    );
    tidy(() => {
      const dense = weight.dense();
      const close = (a: Tensor, b: Tensor): void => host(a).forEach((entry, i) => expect(entry).toBeCloseTo(host(b)[i]!, 5));
      close(y, matMul(x, dense, false, true));
      close(gradients[0]!, matMul(cotangent, dense));
      const whole = host(matMul(cotangent, x, true, false));
      host(gradients[1]!).forEach((entry, i) => expect(entry).toBeCloseTo(whole[[29, 3, 14][i]!]!, 5));
      given[0]!.forEach((entry, i) => expect(entry).toBeCloseTo(whole[i]!, 5));
      expect(given[1]).toEqual(given[0]!.slice(6, 18));
    });
    // Frozen, the same numbers, and a gradient for x alone.
    const frozen = gradientsOf(
      () => weight.apply(x, createCall({ batch: {} })),
      [x],
      (of) => [{ of, value: cotangent }],
    );
    expect(host(frozen.value)).toEqual(host(y));
    expect(host(frozen.gradients[0]!)).toEqual(host(gradients[0]!));
    for (const used of [x, cotangent, y, frozen.value, ...gradients, ...frozen.gradients]) used!.dispose();
    dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('builds one matrix at a time: no more than two of its size in the backward pass', () => {
    const shape = [128, 256] as const;
    const flat = Array.from({ length: 64 }, (_, i) => i * 509);
    const { weight, values, dispose } = deltaAt(
      shape,
      flat,
      flat.map((_, i) => Math.sin(i)),
    );
    const [x, cotangent] = [noise([2, 256], draw.at('x'), 'gaussian') as Tensor2D, noise([2, 128], draw.at('dy'), 'gaussian') as Tensor2D];
    const ledger = openMemoryLedger();
    const before = ledger.bytes();
    const { value: y, gradients } = gradientsOf(
      () => weight.apply(x, createCall({ batch: {}, watched: new Map([[values, values.read()]]) })),
      [x, values.read()],
      (of) => [{ of, value: cotangent }],
    );
    const size = 4 * 128 * 256;
    expect(ledger.peak() - before).toBeLessThan(2.2 * size);
    // What is left are results.
    expect(ledger.bytes() - before).toBeLessThan(0.1 * size);
    ledger.dispose();
    for (const used of [x, cotangent, y, ...gradients]) used!.dispose();
    dispose();
  });
});

describe('entries of a matrix by rows', () => {
  // Two stretches.
  const shape = [900, 301] as const;
  const matrix = noise([...shape], draw.at('m'), 'gaussian') as Tensor2D;
  const values = host(matrix);
  const rowsOf = ([from, to]: Range): Tensor => tensor2d(values.slice(from * shape[1], to * shape[1]), [to - from, shape[1]]);
  const sorted = Array.from(values.keys()).sort((a, b) => values[b]! - values[a]! || a - b);
  matrix.dispose();

  it('are found at their places', () => {
    const at = [0, 270_899, 301, 150_000, 77];
    const found = tidy(() =>
      host(
        entriesOf(
          (rows = [0, 900]) => rowsOf(rows),
          tensor2d(
            at.map((e) => [Math.floor(e / 301), e % 301]),
            [5, 2],
            'int32',
          ),
          shape,
        ),
      ),
    );
    expect(found).toEqual(at.map((e) => values[e]));
  });

  it.each([1, 65, 70_000])('the %i largest are those of the whole, in order', (count) => {
    const before = memory().numTensors;
    const { places, scores } = tidy(() => largestOf(rowsOf, count, shape));
    const order = sorted.slice(0, count);
    const at = host(places);
    expect(Array.from({ length: count }, (_, i) => at[2 * i]! * 301 + at[2 * i + 1]!)).toEqual(order);
    expect(host(scores)).toEqual(order.map((e) => values[e]));
    places.dispose();
    scores.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('of equal ones the first are larger', () => {
    const { places, scores } = tidy(() =>
      largestOf(([from, to]) => tensor2d(new Float32Array((to - from) * 4).fill(2), [to - from, 4]), 5, [3, 4]),
    );
    expect(host(places)).toEqual([0, 0, 0, 1, 0, 2, 0, 3, 1, 0]);
    places.dispose();
    scores.dispose();
  });
});
