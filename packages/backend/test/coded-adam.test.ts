import { codedAdamOp, memory, quantizeBlocks, runOp, tensor, tidy, zeros, type CodedAdamInputs, type Tensor } from '@niwaki/tensor';
import { getKernel, getBackend, profile } from '@tensorflow/tfjs-core';
import { expect, it } from 'vitest';

const attributes = { beta1: 0.9, beta2: 0.999, eps: 1e-8, blockSize: 256, guard: true, overwrite: false };

/** Bytes alive at most while a function runs, beside those that were there before it. */
async function peakBytes(run: () => Tensor[]): Promise<number> {
  const before = memory().numBytes;
  const { peakBytes: peak } = await profile(() => {
    const made = run();
    made.forEach((each) => each.dispose());
    return made as never;
  });
  return peak - before;
}

it('holds no moment in f32 beyond a chunk', async () => {
  const size = 2 ** 21 + 5;
  const inputs: CodedAdamInputs = tidy(() => {
    const [momentum, variance] = [true, false].map((signed) => quantizeBlocks(zeros([size]), { signed }));
    return {
      gradient: tensor(Float32Array.from({ length: size }, (_, i) => Math.sin(i))),
      momentumWords: momentum!.words,
      momentumScales: momentum!.scales,
      varianceWords: variance!.words,
      varianceScales: variance!.scales,
      factors: tensor([0.1, 0.001, 1]),
    };
  });
  const results = 4 * size + 2 * (4 * Math.ceil(size / 4) + 4 * Math.ceil(size / 256));
  const peak = await peakBytes(() => runOp(codedAdamOp, inputs, attributes));
  // A reference puts its chunks together at the end, and works on some 20 f32 tensors of a chunk of 2^18 entries.
  const bound = getKernel(codedAdamOp.kernelName, getBackend()) === undefined ? 2 * results + 24 * 4 * 2 ** 18 : results;
  expect(peak).toBeLessThanOrEqual(bound);
  for (const each of Object.values(inputs)) each.dispose();
});
