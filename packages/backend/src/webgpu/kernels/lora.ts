import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import type { NamedAttrMap, TensorInfo } from '@tensorflow/tfjs-core';
import { loraGradOp, loraOp, loraProductGradOp, loraProductOp, type NoiseAttributes, type PackedShape } from '@niwaki/tensor';
import { abilitiesOf } from '../abilities.ts';
import { dispatch } from '../dispatch.ts';
import { kernelOf, release, sizeOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import {
  dotSums,
  gradientColumns,
  loraDenseProduct,
  loraDropped,
  loraFactorGradient,
  loraInnerGradients,
  loraNarrow,
  loraPackedProduct,
  loraWide,
  ranksEach,
} from './lora.wgsl.ts';
import { matMulKernel } from './mat-mul.ts';
import { mostVectorRows } from './mat-vec.wgsl.ts';
import { draw } from './noise.ts';
import { decoderOf, runLength } from './packed-decode.wgsl.ts';
import { ordered, packedMatMulKernel } from './packed-matmul.ts';
import { tileColumns, tileRows, tilesFor } from './tiles.wgsl.ts';

type Inputs<X extends string> = { readonly [name in X]: TensorInfo };

interface Attributes {
  readonly scale: number;
  readonly dropout?: NoiseAttributes | undefined;
}

export const loraKernel: Kernel = kernelOf(loraOp, (inputs, attributes, backend) => tail(backend, inputs, attributes));

export const loraGradKernel: Kernel = kernelOf(loraGradOp, (inputs, attributes, backend) => gradients(backend, inputs, attributes));

export const loraProductKernel: Kernel = kernelOf(loraProductOp, ({ x, a, b, ...parts }, { packed, ...attributes }, backend) => {
  const inner = innerOf(backend, { x, a }, attributes);
  const columns = b.shape[0]!;
  if (attributes.unread) return [backend.makeTensorInfo([x.shape[0]!, columns], 'float32'), inner];
  return [product(backend, { x, parts, packed, inner, factor: b, columns, transposed: false, scale: attributes.scale }), inner];
});

export const loraProductGradKernel: Kernel = kernelOf(
  loraProductGradOp,
  ({ dy, x, a, b, inner, ...parts }, { packed, ...attributes }, backend) => {
    const through = { x: dy, parts, packed, factor: a, columns: a.shape[1]!, transposed: true, scale: 1 };
    if (attributes.dropout === undefined)
      return gradients(backend, { dy, x, a, b, inner }, attributes, (dInner) => product(backend, { ...through, inner: dInner }));
    const base = multiply(backend, dy, parts, { packed, transposed: true });
    const outputs = gradients(backend, { dy, x, a, b, inner, base }, attributes);
    release(backend, base);
    return outputs;
  },
);

function tail(
  backend: WebGPUBackend,
  { base, x, a, b }: Inputs<'base' | 'x' | 'a' | 'b'>,
  attributes: Attributes & { readonly unread: boolean },
): TensorInfo[] {
  const inner = innerOf(backend, { x, a }, attributes);
  const columns = b.shape[0]!;
  if (attributes.unread) return [backend.makeTensorInfo([x.shape[0]!, columns], 'float32'), inner];
  return [wide(backend, { base, inner, factor: b, columns, across: true, scale: attributes.scale }), inner];
}

/** x·aᵀ, x under dropout. */
function innerOf(backend: WebGPUBackend, { x, a }: Inputs<'x' | 'a'>, { dropout }: Attributes): TensorInfo {
  const drop = dropout && dropper(backend, dropout);
  const kept = drop?.apply(x) ?? x;
  const inner = narrow(backend, { x: kept, factor: a, rank: a.shape[0]! });
  if (drop !== undefined) release(backend, drop.mask, kept);
  return inner;
}

/** dx, on top of a base where there is one, da, db. @param through how dx comes from what reaches x·aᵀ, where nothing was dropped */
function gradients(
  backend: WebGPUBackend,
  { base, dy, x, a, b, inner }: Inputs<'dy' | 'x' | 'a' | 'b' | 'inner'> & { readonly base?: TensorInfo },
  { scale, dropout }: Attributes,
  through = (dInner: TensorInfo): TensorInfo =>
    wide(backend, { ...(base && { base }), inner: dInner, factor: a, columns: a.shape[1]!, across: false, scale: 1 }),
): TensorInfo[] {
  const drop = dropout && dropper(backend, dropout);
  const kept = drop?.apply(x) ?? x;
  const { dInner, db } = innerGradients(backend, { dy, b, inner }, scale);
  const da = factorGradient(backend, { x: kept, inner: dInner });
  if (drop === undefined) {
    const dx = through(dInner);
    release(backend, dInner);
    return [dx, da, db];
  }
  const whole = wide(backend, { inner: dInner, factor: a, columns: a.shape[1]!, across: false, scale: 1 });
  const dx = drop.apply(whole, base);
  release(backend, dInner, whole, kept, drop.mask);
  return [dx, da, db];
}

interface Dropper {
  readonly mask: TensorInfo;
  /** What the mask keeps of x, on top of a base where there is one. */
  apply(x: TensorInfo, base?: TensorInfo): TensorInfo;
}

function dropper(backend: WebGPUBackend, dropout: NoiseAttributes): Dropper {
  const mask = draw(backend, dropout);
  return {
    mask,
    apply: (x, base) => {
      const count = sizeOf(x);
      return dispatch(backend, loraDropped(base !== undefined), {
        inputs: { ...(base && { base }), x, mask },
        outputs: { y: { shape: x.shape } },
        uniforms: { count, share: 1 / dropout.keep },
        groups: fold(count, lanes),
      }).y;
    },
  };
}

interface LowRankProduct {
  readonly x: TensorInfo;
  /** Of the frozen matrix. */
  readonly parts: { readonly [part: string]: TensorInfo };
  readonly packed?: PackedShape | undefined;
  readonly inner: TensorInfo;
  readonly factor: TensorInfo;
  readonly columns: number;
  readonly transposed: boolean;
  readonly scale: number;
}

/** x·Wᵀ + scale · inner·factor, or x·W where `transposed`: in one launch, but for a few rows, and for more parts than a shader may bind. */
function product(backend: WebGPUBackend, { x, parts, packed, inner, factor, columns, transposed, scale }: LowRankProduct): TensorInfo {
  const [rows, terms] = x.shape as [number, number];
  // x, inner, factor and the result beside the parts.
  if (rows <= mostVectorRows || Object.keys(parts).length + 4 > abilitiesOf(backend).buffers) {
    const base = multiply(backend, x, parts, { packed, transposed });
    const y = wide(backend, { base, inner, factor, columns, across: !transposed, scale });
    release(backend, base);
    return y;
  }
  const tiles = tilesFor(rows, columns);
  const run = {
    outputs: { y: { shape: [rows, columns] } },
    uniforms: { rows, columns, terms, rank: inner.shape[1]!, scale },
    groups: [Math.ceil(columns / tileColumns(tiles)), Math.ceil(rows / tileRows(tiles))] as const,
  };
  if (packed === undefined) {
    const inputs = { a: x, b: parts['weight']!, inner, factor };
    return dispatch(backend, loraDenseProduct({ transposed, tiles }), { ...run, inputs }).y;
  }
  const decoder = decoderOf(packed);
  const variant = { decoder, aligned: packed.in % runLength === 0, transposed, tiles };
  return dispatch(backend, loraPackedProduct(variant), { ...run, inputs: { x, ...ordered(decoder, parts), inner, factor } }).y;
}

/** x·Wᵀ, or x·W where `transposed`, of a frozen matrix. */
function multiply(
  backend: WebGPUBackend,
  x: TensorInfo,
  parts: { readonly [part: string]: TensorInfo },
  { packed, transposed }: { readonly packed?: PackedShape | undefined; readonly transposed: boolean },
): TensorInfo {
  const [kernel, inputs, attrs] =
    packed === undefined
      ? [matMulKernel, { a: x, b: parts['weight']! }, { transposeA: false, transposeB: !transposed }]
      : [packedMatMulKernel, { ...parts, x }, { ...packed, transposed }];
  const y = kernel.kernelFunc({ inputs, attrs: attrs as unknown as NamedAttrMap, backend });
  return Array.isArray(y) ? y[0]! : y;
}

/** x·aᵀ. */
function narrow(
  backend: WebGPUBackend,
  { x, factor, rank }: { readonly x: TensorInfo; readonly factor: TensorInfo; readonly rank: number },
) {
  const [rows, terms] = x.shape as [number, number];
  return dispatch(backend, loraNarrow, {
    inputs: { x, factor },
    outputs: { y: { shape: [rows, rank] } },
    uniforms: { rows, terms, rank, scale: 1 },
    groups: fold(rows * rank, dotSums),
  }).y;
}

interface Wide {
  readonly base?: TensorInfo;
  readonly inner: TensorInfo;
  readonly factor: TensorInfo;
  readonly columns: number;
  readonly across: boolean;
  readonly scale: number;
}

function wide(backend: WebGPUBackend, { base, inner, factor, columns, across, scale }: Wide): TensorInfo {
  const [rows, rank] = inner.shape as [number, number];
  return dispatch(backend, loraWide(base !== undefined, across), {
    inputs: { ...(base && { base }), inner, factor },
    outputs: { y: { shape: [rows, columns] } },
    uniforms: { count: rows * columns, columns, rank, scale },
    groups: fold(rows * columns, lanes),
  }).y;
}

/** What reaches x·aᵀ, and db. */
function innerGradients(backend: WebGPUBackend, { dy, b, inner }: Inputs<'dy' | 'b' | 'inner'>, scale: number): Inputs<'dInner' | 'db'> {
  const [rows, columns] = dy.shape as [number, number];
  const rank = inner.shape[1]!;
  const [first, across] = [Math.ceil((rows * rank) / dotSums), Math.ceil(columns / gradientColumns)];
  return dispatch(backend, loraInnerGradients, {
    inputs: { dy, b, inner },
    outputs: { dInner: { shape: [rows, rank] }, db: { shape: b.shape } },
    uniforms: { rows, columns, rank, narrow: first, across, scale },
    groups: fold(first + across * Math.ceil(rank / ranksEach)),
  });
}

/** da. */
function factorGradient(backend: WebGPUBackend, { x, inner }: Inputs<'x' | 'inner'>): TensorInfo {
  const [rows, columns] = x.shape as [number, number];
  const rank = inner.shape[1]!;
  return dispatch(backend, loraFactorGradient, {
    inputs: { x, inner },
    outputs: { y: { shape: [rank, columns] } },
    uniforms: { rows, columns, rank, scale: 1 },
    groups: [Math.ceil(columns / gradientColumns), Math.ceil(rank / ranksEach)],
  }).y;
}
