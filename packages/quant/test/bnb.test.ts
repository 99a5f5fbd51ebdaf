import { describe, expect, it } from 'vitest';
import {
  FormatError,
  NotFoundError,
  bfloatToFloat,
  denseParameter,
  floatToBfloat,
  floatToHalf,
  halfToFloat,
  memory,
  tensor,
  tensor2d,
  type Json,
} from '@niwaki/tensor';
import { createModel, forward, type Model } from '@niwaki/nn';
import { denseWeight, disposeWeight, type TensorSource, type Weight } from '@niwaki/weights';
import { bnb4bit, fp4, nf4, quantize } from '../src/index.ts';
import { hasShared, sharedJson } from '../../testing/src/shared.ts';
import { sharedTensors, type SharedTensor } from '../../testing/src/shared-tensors.ts';

type Files = Map<string, Pick<SharedTensor, 'dtype' | 'shape' | 'bytes'>>;

const sourceOf = (tensors: Files): TensorSource => {
  const find = (name: string): Pick<SharedTensor, 'dtype' | 'shape' | 'bytes'> => {
    const found = tensors.get(name);
    if (found === undefined) throw new NotFoundError(`no tensor '${name}'`);
    return found;
  };
  return {
    names: () => [...tensors.keys()],
    info: (name) => {
      const { dtype, shape, bytes } = find(name);
      return { dtype, shape, bytes: bytes.length };
    },
    read: async (name, [from, to] = [0, find(name).bytes.length]) => ({ ...find(name), bytes: find(name).bytes.slice(from, to) }),
  };
};

const golden = (folder: string): Map<string, SharedTensor> => sharedTensors(`golden/quant/${folder}/model.safetensors`);
const modules = (tensors: Files): string[] =>
  [...tensors.keys()].filter((name) => name.includes('quant_state')).map((name) => name.slice(0, name.indexOf('.weight.quant_state')));

type Dtype = 'float32' | 'float16' | 'bfloat16';
/** The reference dequantizes to the dtype of its state, and quantizes from a model that was loaded in it. */
const rounding: Readonly<Record<Dtype, (value: number) => number>> = {
  float32: (value) => value,
  float16: (value) => halfToFloat(floatToHalf(value)),
  bfloat16: (value) => bfloatToFloat(floatToBfloat(value)),
};

async function roundedDense(weight: Weight): Promise<Float32Array> {
  const { dtype } = weight.options as { dtype: Dtype };
  const dense = weight.dense();
  const values = (await dense.data()).map(rounding[dtype]) as Float32Array;
  dense.dispose();
  return values;
}

/** A golden llama, its matrices read by the format where it claims them; `round` widens them to what the reference multiplies with. */
async function load(folder: string, { quantized, round = 'float32' }: { quantized: boolean; round?: Dtype }): Promise<Model> {
  const tensors = quantized ? golden(folder) : sharedTensors(`golden/${folder}/model.safetensors`);
  const source = sourceOf(tensors);
  const config = sharedJson<Record<string, unknown>>(`golden/${quantized ? 'quant/' : ''}${folder}/config.json`);
  return createModel({
    config,
    source: folder,
    weight: async (path, _, role) => {
      const module = path.replace(/\.weight$/, '');
      if (bnb4bit.claims(new Set(tensors.keys()), module, config as Json)) {
        const weight = await bnb4bit.read(module, source, config as Json);
        if (round === 'float32') return weight;
        const widened = tensor2d(await roundedDense(weight), [...weight.shape]);
        disposeWeight(weight);
        return denseWeight(denseParameter(path, widened, { role }));
      }
      const value = tensors.get(path);
      if (value === undefined) return undefined;
      const values = role === 'matrix' ? value.values().map(rounding[round]) : value.values();
      return denseWeight(denseParameter(path, tensor(values, [...value.shape]), { role }));
    },
    vector: async (path, _, role) => {
      const value = tensors.get(path);
      return value && denseParameter(path, tensor(value.values(), [...value.shape]), { role });
    },
  });
}

const hex = (bytes: Uint8Array): string => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);

interface Io {
  input_ids: number[][];
  logits: number[];
  dequantized: Record<string, number[]>;
}

describe.skipIf(!hasShared).each([
  ['bnb-nf4', 'float32'],
  ['bnb-fp4', 'float32'],
  ['bnb-nf4-doublequant', 'float16'],
  ['bnb-nf4-bf16storage', 'bfloat16'],
] as const)('the checkpoint %s', (folder, dtype) => {
  const io = hasShared ? sharedJson<Io>(`golden/quant/${folder}/io.json`) : ({} as Io);

  it('gives the dequantized matrix of the reference', async () => {
    const before = memory().numTensors;
    const [path, expected] = Object.entries(io.dequantized)[0]!;
    const weight = await bnb4bit.read(path.replace(/\.weight$/, ''), sourceOf(golden(folder)), {});
    expect(weight.options).toMatchObject({ dtype });
    const values = [...(await roundedDense(weight))];
    expect(values).toHaveLength(expected.length);
    expect(Math.max(...values.map((value, i) => Math.abs(value - expected[i]!)))).toBeLessThan(1e-6);
    disposeWeight(weight);
    expect(memory().numTensors).toBe(before);
  });

  it('gives the logits of the reference', async () => {
    const model = await load(folder, { quantized: true, round: dtype });
    const ids = tensor2d(io.input_ids, undefined, 'int32');
    const logits = forward(model, { tokenIds: ids });
    const values = [...logits.dataSync()];
    expect(values).toHaveLength(io.logits.length);
    expect(Math.max(...values.map((value, i) => Math.abs(value - io.logits[i]!)))).toBeLessThan(1e-4);
    ids.dispose();
    logits.dispose();
    model.dispose();
  });

  it('is written back as it was read: names, dtypes, shapes and bytes', async () => {
    const tensors = golden(folder);
    for (const path of modules(tensors)) {
      const weight = await bnb4bit.read(path, sourceOf(tensors), {});
      const written = await bnb4bit.write(weight, path)!;
      const expected = [...tensors].filter(([name]) => name.startsWith(`${path}.weight`));
      expect([...written.keys()].sort()).toEqual(expected.map(([name]) => name).sort());
      for (const [name, { dtype, shape, bytes }] of expected) {
        const ours = written.get(name)!;
        // Codes filed under a wider dtype are written as the bytes they are.
        const asBytes = name === `${path}.weight` ? { dtype: 'U8', shape: [bytes.length, 1] } : { dtype, shape };
        expect({ name, ...ours, bytes: hex(ours.bytes) }).toEqual({ name, ...asBytes, bytes: hex(bytes) });
      }
      disposeWeight(weight);
    }
    expect.hasAssertions();
  });
});

describe.skipIf(!hasShared).each([
  ['bnb-nf4', nf4({ doubleQuant: false })],
  ['bnb-fp4', fp4({ doubleQuant: false })],
  ['bnb-nf4-doublequant', nf4({ dtype: 'float16' })],
  ['bnb-nf4-bf16storage', nf4({ dtype: 'bfloat16' })],
])('quantizing the float model of %s', (folder, method) => {
  it('gives every tensor of the checkpoint, byte for byte', async () => {
    const model = await load('models/llama', { quantized: false, round: method.options['dtype'] as Dtype });
    const before = memory().numTensors;
    const { sites } = await quantize(model, method);
    const tensors = golden(folder);
    expect([...sites].sort()).toEqual(modules(tensors).sort());
    for (const site of model.sites([...sites])) {
      const written = await bnb4bit.write(site.weight!, site.path)!;
      for (const [name, { dtype, shape, bytes }] of [...tensors].filter(([key]) => key.startsWith(`${site.path}.weight`))) {
        const ours = written.get(name)!;
        const asBytes = name === `${site.path}.weight` ? { dtype: 'U8', shape: [bytes.length, 1] } : { dtype, shape };
        const readable = name.includes('quant_state') ? text : hex;
        expect({ name, ...ours, bytes: readable(ours.bytes) }).toEqual({ name, ...asBytes, bytes: readable(bytes) });
      }
    }
    const parts = method.options['doubleQuant'] === true ? 6 : 3;
    expect(memory().numTensors).toBe(before + sites.length * (parts - 1));
    expect(bnb4bit.config!(new Map(model.sites([...sites]).map((site) => [site.path, site.weight!])))).toMatchObject({
      quantization_config: { bnb_4bit_quant_type: method.kind, bnb_4bit_use_double_quant: method.options['doubleQuant'] },
    });
    model.dispose();
  });
});

describe.skipIf(!hasShared)('the large tensor with nested statistics', () => {
  it('is read and written byte for byte, and dequantizes to the half floats of the reference', async () => {
    const tensors = sharedTensors('golden/quant/bnb-nf4-big/tensors.safetensors');
    const weight = await bnb4bit.read('w', sourceOf(tensors), {});
    const dense = weight.dense();
    const expected = tensors.get('dequantized')!.values();
    expect([...dense.dataSync()].map((value) => halfToFloat(floatToHalf(value)))).toEqual([...expected]);
    const written = await bnb4bit.write(weight, 'w')!;
    for (const [name, { bytes }] of written) expect(hex(bytes)).toBe(hex(tensors.get(name)!.bytes));
    dense.dispose();
    disposeWeight(weight);
  });
});

describe.skipIf(!hasShared)('a damaged or hostile checkpoint', () => {
  const path = 'model.layers.0.mlp.gate_proj';
  const change = (name: string, edit: (state: Record<string, unknown>) => Record<string, unknown>): Files => {
    const tensors: Files = new Map(golden('bnb-nf4-doublequant'));
    const key = `${path}.weight.quant_state.bitsandbytes__nf4`;
    const bytes = new TextEncoder().encode(JSON.stringify(edit(JSON.parse(text(tensors.get(key)!.bytes)) as Record<string, unknown>)));
    return tensors.set(name === '' ? key : name, { dtype: 'U8', shape: [bytes.length], bytes });
  };
  const read = (tensors: Files): Promise<Weight> => bnb4bit.read(path, sourceOf(tensors), {});

  it.each([
    ['an unknown key', { extra: 1 }],
    ['another block size', { blocksize: 48 }],
    ['another type', { quant_type: 'fp4' }],
    ['an unknown dtype', { dtype: 'float64' }],
    ['a shape that is no matrix', { shape: [16] }],
    ['a shape that overflows', { shape: [2 ** 40, 2 ** 40] }],
    ['a shape that does not fit the codes', { shape: [48, 16] }],
    ['an offset that is no number', { nested_offset: 'x' }],
    ['another nested block size', { nested_blocksize: 128 }],
  ])('with %s is refused', async (_, fields) => {
    const before = memory().numTensors;
    await expect(read(change('', (state) => ({ ...state, ...fields })))).rejects.toThrow(FormatError);
    expect(memory().numTensors).toBe(before);
  });

  it('without nested statistics that its state promises is refused', async () => {
    const tensors: Files = new Map(golden('bnb-nf4-doublequant'));
    tensors.delete(`${path}.weight.nested_absmax`);
    await expect(read(tensors)).rejects.toThrow(NotFoundError);
  });

  it('with two states, or a state that is not JSON, is refused', async () => {
    await expect(read(change(`${path}.weight.quant_state.bitsandbytes__fp4`, (state) => state))).rejects.toThrow('exactly one quant_state');
    const tensors: Files = new Map(golden('bnb-nf4'));
    tensors.set(`${path}.weight.quant_state.bitsandbytes__nf4`, { dtype: 'U8', shape: [3], bytes: Uint8Array.of(0xff, 0xfe, 0x7b) });
    await expect(read(tensors)).rejects.toThrow('is not JSON');
  });

  it('with absmax that is not finite is refused', async () => {
    const tensors: Files = new Map(golden('bnb-nf4'));
    const absmax = tensors.get(`${path}.weight.absmax`)!;
    const bytes = absmax.bytes.slice();
    new DataView(bytes.buffer).setFloat32(0, NaN, true);
    tensors.set(`${path}.weight.absmax`, { ...absmax, bytes });
    await expect(read(tensors)).rejects.toThrow('not finite');
  });
});

describe('the format', () => {
  it('does not write weights of other kinds', () => {
    const weight = denseWeight(denseParameter('m.weight', tensor2d([[1, 2]]), { role: 'matrix' }));
    expect(bnb4bit.write(weight, 'm')).toBeUndefined();
    expect(bnb4bit.config!(new Map([['m', weight]]))).toEqual({});
    disposeWeight(weight);
  });
});
