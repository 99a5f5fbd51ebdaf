import { findBackend, type KernelConfig } from '@tensorflow/tfjs-core';
import type { StartedDevice } from '../started-device.ts';
import { replaceKernel } from '../replace-kernel.ts';
import { dequantizeBlocksKernel, quantizeBlocksKernel } from './block-code.ts';
import { chooseKernel } from './choose.ts';
import { fieldKernels } from './fields.ts';
import { matMulKernel } from './mat-mul.ts';
import { packedMatMulKernel, packedRowsKernel } from './packed-matmul.ts';
import { unsortedSegmentSumKernel } from './unsorted-segment-sum.ts';
import { updateGroupsKernel } from './update-groups.ts';

const kernels: readonly KernelConfig[] = [
  chooseKernel,
  quantizeBlocksKernel,
  dequantizeBlocksKernel,
  matMulKernel,
  packedMatMulKernel,
  packedRowsKernel,
  unsortedSegmentSumKernel,
  updateGroupsKernel,
  ...fieldKernels,
];

/** Loads tfjs's cpu device and puts our kernels on it. Does not make it current. */
export async function initCpu(): Promise<StartedDevice> {
  await import('@tensorflow/tfjs-backend-cpu');
  // The device's first use prints an advertisement for tfjs-node, which does not load on current Node.
  (findBackend('cpu') as unknown as { firstUse: boolean }).firstUse = false;
  for (const kernel of kernels) replaceKernel(kernel);
  return { backendName: 'cpu', threads: 1, description: 'tfjs cpu' };
}
