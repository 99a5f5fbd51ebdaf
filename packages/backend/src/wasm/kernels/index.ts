import type { KernelConfig } from '@tensorflow/tfjs-core';
import type { WasmDevice } from '../device.ts';
import { adamKernels } from './adam.ts';
import { addProductKernels } from './add-product.ts';
import { attentionKernels } from './attention.ts';
import { blockCodeKernels } from './block-code.ts';
import { chooseKernels } from './choose.ts';
import { codedAdamKernels } from './coded-adam.ts';
import { commitUpdateKernels } from './commit-update.ts';
import { convolutionKernels } from './convolution.ts';
import { copyKernels } from './copies.ts';
import { crossEntropyKernels } from './cross-entropy.ts';
import { depthwiseKernels } from './depthwise.ts';
import { fieldKernels } from './fields.ts';
import { gatherKernels } from './gather.ts';
import { geluKernels } from './gelu.ts';
import { groupedKernels } from './grouped-matmul.ts';
import { integerMatMulKernel } from './integer-matmul.ts';
import { layerNormKernels } from './layer-norm.ts';
import { loraKernels } from './lora.ts';
import { matMulKernels } from './mat-mul.ts';
import { maxPoolKernels } from './max-pool.ts';
import { noiseKernels } from './noise.ts';
import { oneHotKernels } from './one-hot.ts';
import { packedKernels } from './packed-matmul.ts';
import { putRowsKernels } from './put-rows.ts';
import { rmsNormKernels } from './rms-norm.ts';
import { ropeKernels } from './rope.ts';
import { signKernels } from './sign.ts';
import { softRoundKernels } from './soft-round.ts';
import { sumKernels } from './sum.ts';
import { sumSquaresKernels } from './sum-squares.ts';
import { swigluKernels } from './swiglu.ts';
import { unwrittenKernels } from './unwritten.ts';
import { updateGroupsKernels } from './update-groups.ts';

const families = [
  matMulKernels,
  addProductKernels,
  gatherKernels,
  convolutionKernels,
  depthwiseKernels,
  maxPoolKernels,
  copyKernels,
  putRowsKernels,
  chooseKernels,
  noiseKernels,
  oneHotKernels,
  sumKernels,
  packedKernels,
  groupedKernels,
  integerMatMulKernel,
  rmsNormKernels,
  layerNormKernels,
  geluKernels,
  swigluKernels,
  ropeKernels,
  attentionKernels,
  crossEntropyKernels,
  adamKernels,
  codedAdamKernels,
  commitUpdateKernels,
  sumSquaresKernels,
  loraKernels,
  signKernels,
  blockCodeKernels,
  fieldKernels,
  softRoundKernels,
  unwrittenKernels,
  updateGroupsKernels,
];

/** Everything of ours that runs on the wasm device. */
export const kernels = (device: WasmDevice): readonly KernelConfig[] => families.flatMap((make) => make(device));
