import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import type { NamedAttrMap, TensorInfo } from '@tensorflow/tfjs-core';
import { loraGradOp, loraOp, loraProductGradOp, loraProductOp, type NoiseAttributes, type PackedShape } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, release, sizeOf, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { dotSums, gradientColumns, loraDropped, loraFactorGradient, loraNarrow, loraWide, ranksEach } from './lora.wgsl.ts';
import { matMulKernel } from './mat-mul.ts';
import { draw } from './noise.ts';
import { packedMatMulKernel } from './packed-matmul.ts';

type Inputs<X extends string> = { readonly [name in X]: TensorInfo };

interface Attributes {
  readonly scale: number;
  readonly dropout?: NoiseAttributes | undefined;
}

export const loraKernel: Kernel = kernelOf(loraOp, (inputs, attributes, backend) => tail(backend, inputs, attributes));

export const loraGradKernel: Kernel = kernelOf(loraGradOp, (inputs, attributes, backend) => gradients(backend, inputs, attributes));

export const loraProductKernel: Kernel = kernelOf(loraProductOp, ({ x, a, b, ...parts }, { packed, ...attributes }, backend) => {
  const base = attributes.unread ? undefined : multiply(backend, x, parts, { packed, transposed: false });
  const outputs = tail(backend, { x, a, b, ...(base && { base }) }, attributes);
  if (base !== undefined) release(backend, base);
  return outputs;
});

export const loraProductGradKernel: Kernel = kernelOf(
  loraProductGradOp,
  ({ dy, x, a, b, inner, ...parts }, { packed, ...attributes }, backend) => {
    const base = multiply(backend, dy, parts, { packed, transposed: true });
    const outputs = gradients(backend, { dy, x, a, b, inner, base }, attributes);
    release(backend, base);
    return outputs;
  },
);

function tail(
  backend: WebGPUBackend,
  { base, x, a, b }: Inputs<'x' | 'a' | 'b'> & { readonly base?: TensorInfo },
  { scale, dropout, unread }: Attributes & { readonly unread: boolean },
): TensorInfo[] {
  const drop = dropout && dropper(backend, dropout);
  const kept = drop?.apply(x) ?? x;
  const inner = narrow(backend, { x: kept, factor: a, rank: a.shape[0]!, across: false, scale: 1 });
  if (drop !== undefined) release(backend, drop.mask, kept);
  const columns = b.shape[0]!;
  if (unread) return [backend.makeTensorInfo([x.shape[0]!, columns], 'float32'), inner];
  return [wide(backend, { ...(base && { base }), inner, factor: b, columns, across: true, scale }), inner];
}

/** dx, on top of a base where there is one, da, db. */
function gradients(
  backend: WebGPUBackend,
  { base, dy, x, a, b, inner }: Inputs<'dy' | 'x' | 'a' | 'b' | 'inner'> & { readonly base?: TensorInfo },
  { scale, dropout }: Attributes,
): TensorInfo[] {
  const drop = dropout && dropper(backend, dropout);
  const kept = drop?.apply(x) ?? x;
  const dInner = narrow(backend, { x: dy, factor: b, rank: b.shape[1]!, across: true, scale });
  const da = factorGradient(backend, { x: kept, inner: dInner, shape: a.shape, across: false, scale: 1 });
  const db = factorGradient(backend, { x: dy, inner, shape: b.shape, across: true, scale });
  const back = { inner: dInner, factor: a, columns: a.shape[1]!, across: false, scale: 1 };
  if (drop === undefined) {
    const dx = wide(backend, { ...(base && { base }), ...back });
    release(backend, dInner);
    return [dx, da, db];
  }
  const whole = wide(backend, back);
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

interface Narrow {
  readonly x: TensorInfo;
  readonly factor: TensorInfo;
  readonly rank: number;
  readonly across: boolean;
  readonly scale: number;
}

function narrow(backend: WebGPUBackend, { x, factor, rank, across, scale }: Narrow): TensorInfo {
  const [rows, terms] = x.shape as [number, number];
  return dispatch(backend, loraNarrow(across), {
    inputs: { x, factor },
    outputs: { y: { shape: [rows, rank] } },
    uniforms: { rows, terms, rank, scale },
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

interface FactorGradient {
  readonly x: TensorInfo;
  readonly inner: TensorInfo;
  readonly shape: readonly number[];
  readonly across: boolean;
  readonly scale: number;
}

function factorGradient(backend: WebGPUBackend, { x, inner, shape, across, scale }: FactorGradient): TensorInfo {
  const [rows, columns] = x.shape as [number, number];
  const rank = inner.shape[1]!;
  return dispatch(backend, loraFactorGradient(across), {
    inputs: { x, inner },
    outputs: { y: { shape } },
    uniforms: { rows, columns, rank, scale },
    groups: [Math.ceil(columns / gradientColumns), Math.ceil(rank / ranksEach)],
  }).y;
}
