import { init } from '@niwaki/backend';
import { memory, packedMatMulOp, packedRowsOp, runOp, tensor, type Tensor } from '@niwaki/tensor';
import { expect, test } from 'vitest';
import { packedFixture, packedFormats, widthsOf } from './packed-fixture.ts';
import { floats, ints, reference, type Host } from './parity.ts';

const upload = ({ shape, values }: Host): Tensor => tensor(values, [...shape], values instanceof Int32Array ? 'int32' : 'float32');

async function onCpu(op: Parameters<typeof reference>[0], inputs: Record<string, Host>, attrs: object): Promise<number[]> {
  await init({ device: 'cpu' });
  const before = memory().numTensors;
  const tensors = Object.fromEntries(Object.entries(inputs).map(([name, host]) => [name, upload(host)]));
  const [y] = runOp(op, tensors as never, attrs as never);
  const values = [...(await y!.data())];
  for (const t of [y!, ...Object.values(tensors)]) t.dispose();
  expect(memory().numTensors).toBe(before);
  return values;
}

// The same sums in another order, carried in double on one side.
const digits = 4;

test.each(packedFormats.map((format) => [format, widthsOf(format)[0]!] as const))(
  'the cpu product of a packed %s matrix of width %i equals its reference, both ways, over more than one tile',
  async (format, width) => {
    const { shape, parts } = packedFixture(format, 37, width);
    for (const transposed of [false, true]) {
      const inputs = { x: floats([3, transposed ? 37 : width]), ...parts };
      const [expected] = await reference(packedMatMulOp as never, inputs, { ...shape, transposed });
      const given = await onCpu(packedMatMulOp as never, inputs, { ...shape, transposed });
      given.forEach((v, i) => expect(v).toBeCloseTo(expected!.values[i]!, digits));
    }
    const inputs = { ids: ints([5], (i) => (i * 11) % 37), ...parts };
    const [rows] = await reference(packedRowsOp as never, inputs, shape);
    expect(await onCpu(packedRowsOp as never, inputs, shape)).toEqual([...rows!.values]);
  },
);
