import type { KernelConfig } from '@tensorflow/tfjs-core';
import type { Kernel } from './kernel.ts';
import { adamKernel } from './kernels/adam.ts';
import { addProductKernel } from './kernels/add-product.ts';
import { allFiniteKernel } from './kernels/all-finite.ts';
import { attentionGradKernel, attentionKernel } from './kernels/attention.ts';
import { dequantizeBlocksKernel, quantizeBlocksKernel } from './kernels/block-code.ts';
import { chooseKernel } from './kernels/choose.ts';
import { codedAdamKernel } from './kernels/coded-adam.ts';
import { commitUpdateKernel } from './kernels/commit-update.ts';
import { cutWordsKernel, joinWordsKernel } from './kernels/copy-words.ts';
import { countingSortKernel } from './kernels/counting-sort.ts';
import { crossEntropyGradKernel, crossEntropyKernel } from './kernels/cross-entropy.ts';
import { expandGroupsKernel, pickGroupsKernel } from './kernels/groups.ts';
import { geluGradKernel, geluKernel } from './kernels/gelu.ts';
import { integerMatMulKernel } from './kernels/integer-matmul.ts';
import { groupedMatMulGradKernel, groupedMatMulKernel, packedGroupedMatMulKernel } from './kernels/grouped-matmul.ts';
import { layerNormGradKernel, layerNormKernel } from './kernels/layer-norm.ts';
import { loraGradKernel, loraKernel, loraProductGradKernel, loraProductKernel } from './kernels/lora.ts';
import { matMulKernel } from './kernels/mat-mul.ts';
import { addNoiseKernel, noiseKernel } from './kernels/noise.ts';
import { packedMatMulKernel, packedRowsKernel } from './kernels/packed-matmul.ts';
import { putRowsKernel } from './kernels/put-rows.ts';
import { addRmsNormKernel, rmsNormGradKernel, rmsNormKernel } from './kernels/rms-norm.ts';
import { ropeKernel } from './kernels/rope.ts';
import { cumprodKernel, cumsumKernel } from './kernels/scan.ts';
import { unsortedSegmentSumKernel } from './kernels/segment-sum.ts';
import { softRoundGradKernel, softRoundKernel, undecidedGradKernel, undecidedKernel } from './kernels/soft-round.ts';
import { sumSquaresKernel } from './kernels/sum-squares.ts';
import { swigluGradKernel, swigluKernel } from './kernels/swiglu.ts';
import { unpackFieldsKernel } from './kernels/unpack-fields.ts';
import { unwrittenKernel } from './kernels/unwritten.ts';
import { updateGroupsKernel } from './kernels/update-groups.ts';

const kernels: readonly Kernel[] = [
  adamKernel,
  addNoiseKernel,
  addProductKernel,
  addRmsNormKernel,
  allFiniteKernel,
  attentionKernel,
  attentionGradKernel,
  chooseKernel,
  codedAdamKernel,
  commitUpdateKernel,
  countingSortKernel,
  crossEntropyKernel,
  crossEntropyGradKernel,
  dequantizeBlocksKernel,
  quantizeBlocksKernel,
  cumprodKernel,
  cumsumKernel,
  cutWordsKernel,
  groupedMatMulGradKernel,
  groupedMatMulKernel,
  expandGroupsKernel,
  geluKernel,
  geluGradKernel,
  integerMatMulKernel,
  joinWordsKernel,
  layerNormKernel,
  layerNormGradKernel,
  loraKernel,
  loraGradKernel,
  loraProductKernel,
  loraProductGradKernel,
  matMulKernel,
  noiseKernel,
  packedGroupedMatMulKernel,
  packedMatMulKernel,
  packedRowsKernel,
  pickGroupsKernel,
  putRowsKernel,
  rmsNormKernel,
  rmsNormGradKernel,
  ropeKernel,
  softRoundKernel,
  softRoundGradKernel,
  sumSquaresKernel,
  swigluKernel,
  swigluGradKernel,
  undecidedKernel,
  undecidedGradKernel,
  unpackFieldsKernel,
  unsortedSegmentSumKernel,
  unwrittenKernel,
  updateGroupsKernel,
];

/** Every kernel of ours, for one backend. */
export const webgpuKernels = (backendName: string): readonly KernelConfig[] => kernels.map((kernel) => ({ ...kernel, backendName }));
