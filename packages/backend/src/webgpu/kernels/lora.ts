import type { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import type { TensorInfo } from '@tensorflow/tfjs-core';
import { loraGradOp, loraOp } from '@niwaki/tensor';
import { dispatch } from '../dispatch.ts';
import { kernelOf, release, type Kernel } from '../kernel.ts';
import { fold, lanes } from '../program.ts';
import { dotSums, gradientColumns, loraFactorGradient, loraNarrow, loraWide, ranksEach } from './lora.wgsl.ts';

export const loraKernel: Kernel = kernelOf(loraOp, ({ base, x, a, b }, { scale, unread }, backend) => {
  const inner = narrow(backend, { x, factor: a, rank: a.shape[0]!, across: false, scale: 1 });
  if (unread) return [backend.makeTensorInfo(base.shape, 'float32'), inner];
  return [wide(backend, { base, inner, factor: b, columns: b.shape[0]!, scale }), inner];
});

export const loraGradKernel: Kernel = kernelOf(loraGradOp, ({ dy, x, a, b, inner }, { scale }, backend) => {
  const dInner = narrow(backend, { x: dy, factor: b, rank: b.shape[1]!, across: true, scale });
  const dx = wide(backend, { inner: dInner, factor: a, columns: a.shape[1]!, scale: 1 });
  const da = factorGradient(backend, { x, inner: dInner, shape: a.shape, across: false, scale: 1 });
  const db = factorGradient(backend, { x: dy, inner, shape: b.shape, across: true, scale });
  release(backend, dInner);
  return [dx, da, db];
});

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
  readonly scale: number;
}

function wide(backend: WebGPUBackend, { base, inner, factor, columns, scale }: Wide): TensorInfo {
  const [rows, rank] = inner.shape as [number, number];
  return dispatch(backend, loraWide(base !== undefined), {
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
