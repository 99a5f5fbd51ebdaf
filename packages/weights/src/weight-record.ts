import {
  ConfigError,
  denseParameter,
  packBytes,
  tensor1d,
  tensor2d,
  tidy,
  type Json,
  type Parameter,
  type RawTensor,
  type Role,
  type Tensor2D,
} from '@niwaki/tensor';
import { affine, type AffineOptions } from './affine.ts';
import { onScaledChannels, tensorQuantizer, tokenQuantizer, type ActivationQuantizer, type TokenGrid } from './activation-quantizer.ts';
import { codebook4, type Codebook4Options } from './codebook4.ts';
import { csr } from './csr.ts';
import { denseWeight } from './dense.ts';
import { fakeQuant, type FakeQuantOptions } from './fake-quant.ts';
import { ggufBlock } from './gguf-block.ts';
import { masked } from './masked.ts';
import { nOfM, type NOfM } from './n-of-m.ts';
import { normalFloatWeight, type NormalFloatOptions } from './normal-float.ts';
import type { Stored } from './stored-values.ts';
import { trainedAffine, type TrainedAffineOptions } from './trained-affine.ts';
import type { Weight } from './weight.ts';

/** A stored part as data: its bytes as they are, and what it is to others. */
export interface PartRecord extends RawTensor {
  readonly role: Role;
  readonly trainable: boolean;
}

/** A weight as data: enough to make one again that computes the same, bit for bit. */
export interface WeightRecord {
  readonly kind: string;
  readonly options: Json;
  readonly shape: readonly [out: number, in_: number];
  readonly parts: Readonly<Record<string, PartRecord>>;
  /** Parts that train and have no bytes of their own: they show stored ones as one. */
  readonly trains?: readonly string[];
}

/** What rounds a site's input, as data. */
export interface InputRecord extends TokenGrid {
  readonly per: ActivationQuantizer['per'];
  readonly parts: Readonly<Record<string, PartRecord>>;
}

/**
 * @param around parts of a weight that it stands around are not part of the record
 * @throws ConfigError for a kind that `weightFrom` cannot make
 */
export async function recordOfWeight({ kind, options, shape, parts }: Weight, around?: Weight): Promise<WeightRecord> {
  makerOf(kind);
  const outside = new Set(Object.values(around?.parts ?? {}));
  const shown = Object.entries(parts).filter(([, part]) => part.stored !== undefined && part.trainable && !outside.has(part));
  const trains = shown.map(([name]) => name);
  return { kind, options, shape, parts: await recordsOf(parts, outside), ...(trains.length > 0 && { trains }) };
}

/**
 * The weight of a record.
 * @param path module path
 * @param around what it stands around, for a form that is being fitted
 */
export function weightFrom(path: string, record: WeightRecord, around?: Weight): Weight {
  const weight = makerOf(record.kind)(path, record, around);
  for (const [name, part] of Object.entries(weight.parts)) {
    const known = record.parts[name];
    if (known !== undefined && part.trainable !== known.trainable) part.trainable = known.trainable;
  }
  for (const name of record.trains ?? []) weight.parts[name]!.trainable = true;
  return weight;
}

export const recordOfInput = async ({ per, bits, symmetric, outlierThreshold, parts }: ActivationQuantizer): Promise<InputRecord> => ({
  per,
  bits,
  symmetric,
  ...(outlierThreshold !== undefined && { outlierThreshold }),
  parts: await recordsOf(parts, new Set()),
});

/** The quantizer of a record. @param path of the site */
export function inputFrom(path: string, { per, parts, ...grid }: InputRecord): ActivationQuantizer {
  const [scale, zero] = ['input_scale', 'input_zero_point'].map((name) => parts[name] && floats(parts[name])[0]);
  const base = per === 'token' ? tokenQuantizer(grid) : tensorQuantizer(path, { scale: scale!, ...(zero !== undefined && { zero }) }, grid);
  const factors = parts['input_factors'];
  return factors === undefined ? base : onScaledChannels(path, base, floats(factors));
}

async function recordsOf(parts: Weight['parts'], outside: ReadonlySet<Parameter>): Promise<Record<string, PartRecord>> {
  const found: Record<string, PartRecord> = {};
  for (const [name, part] of Object.entries(parts)) {
    // What only shows others as one has nothing of its own.
    if (outside.has(part) || part.stored !== undefined) continue;
    const { role, trainable } = part;
    const { dtype, shape, bytes } = await part.raw();
    // A copy: a device that computes on the host hands out its own memory.
    found[name] = { dtype, shape, bytes: bytes.slice(), role, trainable };
  }
  return found;
}

type Maker = (path: string, record: WeightRecord, around?: Weight) => Weight;

const makers: { readonly [kind: string]: Maker } = {
  dense: (path, { parts: { weight } }) => {
    const { shape, role } = weight!;
    return denseWeight(denseParameter(`${path}.weight`, matrixOf(weight!, shape as [number, number]), { role }));
  },
  gguf: (path, { shape, options, parts: { weight } }) =>
    ggufBlock(path, shape, (options as { format: Parameters<typeof ggufBlock>[2] }).format, weight!.bytes),
  affine: (path, { shape, options, parts: { qweight, scales, zeros, order, input_scales: inputScales } }) => {
    const parts = {
      codes: qweight!.bytes,
      scales: floats(scales!),
      ...(zeros && { zeros: zeros.bytes }),
      ...(order && { order: wholes(order) }),
      ...(inputScales && { inputScales: floats(inputScales) }),
    };
    const settings = options as unknown as AffineOptions & Partial<TrainedAffineOptions>;
    if (settings.rounding === undefined) return affine(path, [...shape], parts, settings);
    return trainedAffine(path, [...shape], parts, { groupSize: settings.groupSize, rounding: settings.rounding });
  },
  codebook4: (path, { shape, options, parts }) => {
    const part = (name: string): PartRecord => parts[`weight${name}`]!;
    const { nested, ...named } = options as unknown as Codebook4Options & { nested: boolean };
    const common = { codes: part('').bytes, codebook: floats(part('.quant_map')) };
    if (!nested) return codebook4(path, [...shape], { ...common, absmax: floats(part('.absmax')) }, named);
    const second = {
      absmax: part('.absmax').bytes,
      nestedMap: floats(part('.nested_quant_map')),
      nestedAbsmax: floats(part('.nested_absmax')),
      nestedOffset: floats(part('.nested_offset')),
    };
    return codebook4(path, [...shape], { ...common, ...second }, named);
  },
  'normal-float': (path, { shape, options, parts: { codes, scale_codes: scaleCodes, offset, ...parts } }) => {
    const { groupScales, ...named } = options as unknown as NormalFloatOptions & { groupScales: Required<Stored> };
    const groups = (shape[0] * shape[1]) / named.blockSize / named.groupSize;
    const stored = weightFrom(`${path}.group_scales`, { ...groupScales, shape: [1, groups], parts } as WeightRecord);
    return normalFloatWeight(
      path,
      shape,
      { codes: codes!.bytes, scaleCodes: scaleCodes!.bytes, groupScales: stored, offset: floats(offset!)[0]! },
      named,
    );
  },
  masked: (path, { shape, options, parts: { mask, ...parts } }) => {
    const { base } = options as unknown as { base: Required<Stored> };
    const weight = masked(path, weightFrom(path, { kind: base.kind, options: base.options as Json, shape, parts }), mask!.bytes);
    // Codes that train are encoded anew as they are masked: these were that already.
    if ((base.options as Partial<TrainedAffineOptions>).rounding !== undefined) {
      for (const name of ['qweight', 'zeros']) weight.parts[name]!.write(packBytes(parts[name]!.bytes));
      weight.parts['scales']!.write(tensor1d(floats(parts['scales']!)));
    }
    return weight;
  },
  'n-of-m': (path, { shape: [out, width], options, parts: { index, ...parts } }) => {
    const { n, m, values } = options as unknown as NOfM & { values: Required<Stored> };
    return nOfM(path, [out, width], { values: valuesFrom(path, values, [out, (width / m) * n], parts), index: index!.bytes }, { n, m });
  },
  csr: (path, { shape, options, parts: { columns, rows, ...parts } }) => {
    const { values, entries } = options as unknown as { values: Required<Stored>; entries: number };
    const narrow = columns!.dtype === 'U16';
    return csr(path, [...shape], {
      values: valuesFrom(path, values, [1, entries], parts),
      columns: narrow ? Int32Array.from(new Uint16Array(aligned(columns!.bytes))) : wholes(columns!),
      rows: wholes(rows!),
    });
  },
  'fake-quant': (path, { options, parts }, around) => {
    if (around === undefined) throw new ConfigError(`'${path}': a form that is being fitted stands around a weight`, { path });
    const [out, width] = around.shape;
    const { soft_scales: scales, soft_zeros: zeros, soft_input_scales: inputScales, rounding, rounding_a: a, rounding_b: b } = parts;
    return fakeQuant(
      path,
      around,
      {
        scales: floats(scales!),
        ...(zeros && { zeros: Uint8Array.from(floats(zeros)) }),
        ...(inputScales && { inputScales: floats(inputScales) }),
        rounding:
          rounding === undefined
            ? { a: matrixOf(a!, a!.shape as [number, number]), b: matrixOf(b!, b!.shape as [number, number]) }
            : matrixOf(rounding, [out, width]),
      },
      options as unknown as FakeQuantOptions,
    );
  },
};

const valuesFrom = (path: string, { kind, options }: Required<Stored>, shape: readonly [number, number], parts: WeightRecord['parts']) =>
  weightFrom(`${path}.values`, { kind, options: options as Json, shape, parts });

function makerOf(kind: string): Maker {
  const maker = makers[kind];
  if (maker !== undefined) return maker;
  throw new ConfigError(`weights of kind '${kind}' have no form as data`, { kind, known: Object.keys(makers) });
}

const aligned = (bytes: Uint8Array): ArrayBuffer => bytes.slice().buffer;
const floats = ({ bytes }: RawTensor): Float32Array => new Float32Array(aligned(bytes));
const wholes = ({ bytes }: RawTensor): Int32Array => new Int32Array(aligned(bytes));
const matrixOf = (part: RawTensor, shape: readonly [number, number]): Tensor2D => tidy(() => tensor2d(floats(part), [...shape]));
