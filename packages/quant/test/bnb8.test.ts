import { describe, expect, it } from 'vitest';
import { denseParameter, floatToHalf, FormatError, halfToFloat, memory, NotFoundError, tensor, tensor2d } from '@niwaki/tensor';
import { createModel, forward, type Model } from '@niwaki/nn';
import { affine, denseWeight, disposeWeight, encodeAffine, rowsOfTensor, type TensorSource, type Weight } from '@niwaki/weights';
import { bnb8bit, formats, quantize, rtn } from '../src/index.ts';
import { hasShared, sharedJson } from '../../testing/src/shared.ts';
import { sharedTensors, type SharedTensor } from '../../testing/src/shared-tensors.ts';

interface Entry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

const sourceOf = (tensors: ReadonlyMap<string, Entry>): TensorSource => {
  const find = (name: string): Entry => {
    const found = tensors.get(name);
    if (found === undefined) throw new NotFoundError(`no tensor '${name}'`);
    return found;
  };
  return {
    names: () => [...tensors.keys()],
    info: (name) => ({ dtype: find(name).dtype, shape: find(name).shape, bytes: find(name).bytes.length }),
    read: async (name) => find(name),
  };
};

async function dense(weight: Weight): Promise<number[]> {
  const values = weight.dense();
  const host = [...(await values.data())];
  values.dispose();
  return host;
}

const floats = (values: readonly number[]): Entry => ({
  dtype: 'F32',
  shape: [values.length],
  bytes: new Uint8Array(Float32Array.from(values).buffer),
});
const integers = (values: readonly number[], shape: readonly number[]): Entry => ({
  dtype: 'I8',
  shape,
  bytes: new Uint8Array(Int8Array.from(values).buffer),
});
const byte = (value: number): Entry => ({ dtype: 'U8', shape: [], bytes: Uint8Array.of(value) });

const row = [50, -127, 0, 100, 1, -1, 127, 64];
const files = (change: Readonly<Record<string, Entry>> = {}): ReadonlyMap<string, Entry> =>
  new Map(
    Object.entries({
      'p.weight': integers([...row, ...row], [2, 8]),
      'p.SCB': floats([1.27, 0]),
      'p.weight_format': byte(0),
      ...change,
    }),
  );

describe('8 bits with the largest of each row', () => {
  it('are codes times that over 127, and 0 in a row of zeros', async () => {
    const before = memory().numTensors;
    const source = sourceOf(files());
    expect(formats.find((format) => format.claims(new Set(source.names()), 'p', {}))).toBe(bnb8bit);
    const weight = await bnb8bit.read('p', source, {});
    const values = await dense(weight);
    row.forEach((code, i) => expect(values[i]).toBeCloseTo(code / 100, 6));
    expect(values.slice(8).every((value) => value === 0)).toBe(true);
    const written = (await bnb8bit.write(weight, 'p'))!;
    expect(new Map([...written].map(([name, { dtype, shape, bytes }]) => [name, { dtype, shape: [...shape], bytes }]))).toEqual(files());
    disposeWeight(weight);
    expect(memory().numTensors).toBe(before);
  });

  it('are what nearest rounding makes, and other integers are not', async () => {
    const matrix = tensor2d([[0.5, -1.27, 0.005, 1, 0, 0, 0, 0]]);
    const made = async (options: { bits: 8 | 4; groupSize: number; grid: 'absmax' | 'asymmetric' }): Promise<Weight> =>
      affine('p', [1, 8], await encodeAffine('p', [1, 8], rowsOfTensor(matrix), options), options);
    const weight = await made({ bits: 8, groupSize: 8, grid: 'absmax' });
    const written = (await bnb8bit.write(weight, 'p'))!;
    expect([...new Int8Array(written.get('p.weight')!.bytes.slice().buffer)]).toEqual([50, -127, 0, 100, 0, 0, 0, 0]);
    expect([...new Float32Array(written.get('p.SCB')!.bytes.slice().buffer)]).toEqual([Math.fround(1.27)]);
    expect(bnb8bit.config!(new Map([['p', weight]]))).toMatchObject({ quantization_config: { load_in_8bit: true, load_in_4bit: false } });
    const others = [await made({ bits: 8, groupSize: 8, grid: 'asymmetric' }), await made({ bits: 4, groupSize: 8, grid: 'absmax' })];
    for (const other of others) expect(bnb8bit.write(other, 'p')).toBeUndefined();
    expect(bnb8bit.config!(new Map(others.map((other, i) => [`${i}`, other])))).toEqual({});
    for (const each of [weight, ...others]) disposeWeight(each);
    matrix.dispose();
  });

  it.each<[string, Readonly<Record<string, Entry>>]>([
    ['must be an I8 matrix', { 'p.weight': { ...integers([...row, ...row], [2, 8]), dtype: 'U8' } }],
    ['must be an I8 matrix', { 'p.weight': integers(row, [2, 8]) }],
    ['must be F32 of 2 rows', { 'p.SCB': floats([1]) }],
    ['no magnitudes', { 'p.SCB': floats([1, NaN]) }],
    ['no magnitudes', { 'p.SCB': floats([1, -1]) }],
    ['says layout 2', { 'p.weight_format': byte(2) }],
  ])('that cannot be right are refused: %s', async (message, change) => {
    const before = memory().numTensors;
    const work = bnb8bit.read('p', sourceOf(files(change)), {});
    await expect(work).rejects.toThrow(FormatError);
    await expect(work).rejects.toThrow(message);
    expect(memory().numTensors).toBe(before);
  });
});

interface Io {
  input_ids: number[][];
  logits: number[];
  dequantized: Record<string, number[]>;
}

/** A golden llama, its matrices in 8 bits or, rounded to halves as the reference does first, in the floats they were made from. */
async function load(folder: string): Promise<Model> {
  const tensors: ReadonlyMap<string, SharedTensor> = sharedTensors(`golden/${folder}/model.safetensors`);
  const source = sourceOf(tensors);
  return createModel({
    config: sharedJson<Record<string, unknown>>(`golden/${folder}/config.json`),
    source: folder,
    weight: async (path, _, role) => {
      const module = path.replace(/\.weight$/, '');
      if (bnb8bit.claims(new Set(tensors.keys()), module, {})) return bnb8bit.read(module, source, {});
      const value = tensors.get(path);
      const values = value?.values().map((entry) => (role === 'matrix' ? halfToFloat(floatToHalf(entry)) : entry));
      return value && denseWeight(denseParameter(path, tensor(values!, [...value.shape]), { role }));
    },
    vector: async (path, _, role) => {
      const value = tensors.get(path);
      return value && denseParameter(path, tensor(value.values(), [...value.shape]), { role });
    },
  });
}

describe.skipIf(!hasShared)('the checkpoint bnb-int8', () => {
  it('gives the dequantized matrix and the logits of the reference', async () => {
    const io = sharedJson<Io>('golden/quant/bnb-int8/io.json');
    const model = await load('quant/bnb-int8');
    const [path, expected] = Object.entries(io.dequantized)[0]!;
    const { weight } = model.sites(path.replace(/\.weight$/, ''))[0]!;
    const values = await dense(weight!);
    expect(Math.max(...values.map((value, i) => Math.abs(value - expected[i]!)))).toBeLessThan(1e-6);
    const ids = tensor2d(io.input_ids, undefined, 'int32');
    const logits = forward(model, { tokenIds: ids });
    const given = [...(await logits.data())];
    expect(given).toHaveLength(io.logits.length);
    expect(Math.max(...given.map((value, i) => Math.abs(value - io.logits[i]!)))).toBeLessThan(1e-4);
    ids.dispose();
    logits.dispose();
    model.dispose();
  });

  it('is what nearest rounding makes of the float model, but for codes at ties and a last bit', async () => {
    const model = await load('models/llama');
    await quantize(model, rtn({ bits: 8, groupSize: 'row', symmetric: true }));
    const golden = sharedTensors('golden/quant/bnb-int8/model.safetensors');
    const names = [...golden.keys()].filter((name) => name.endsWith('.SCB')).map((name) => name.slice(0, -'.SCB'.length));
    let [differing, entries] = [0, 0];
    for (const name of names) {
      const written = (await bnb8bit.write(model.sites(name)[0]!.weight!, name))!;
      const [codes, expected] = [written, golden].map((from) => new Int8Array(from.get(`${name}.weight`)!.bytes.slice().buffer));
      const apart = codes!.map((code, i) => Math.abs(code - expected![i]!));
      // The reference multiplies by 127 over the largest, and nearest rounding divides by the step.
      expect(Math.max(...apart)).toBeLessThanOrEqual(1);
      differing += apart.filter((distance) => distance > 0).length;
      entries += apart.length;
      const largest = new Float32Array(written.get(`${name}.SCB`)!.bytes.slice().buffer);
      golden
        .get(`${name}.SCB`)!
        .values()
        .forEach((value, i) => expect(Math.abs(largest[i]! / value - 1)).toBeLessThan(1.2e-7));
      expect({ dtype: written.get(`${name}.weight_format`)!.dtype, shape: written.get(`${name}.weight_format`)!.shape }).toEqual({
        dtype: golden.get(`${name}.weight_format`)!.dtype,
        shape: golden.get(`${name}.weight_format`)!.shape,
      });
    }
    expect(differing / entries).toBeLessThan(2e-3);
    model.dispose();
  });
});
