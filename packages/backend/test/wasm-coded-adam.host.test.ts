import { codedAdamOp, memory, quantizeBlocks, runOp, tensor, tidy, type CodedAdamInputs, type Tensor } from '@niwaki/tensor';
import { beforeAll, describe, expect, it } from 'vitest';
import { useBuild, wasmBuilds } from './wasm-builds.ts';

/** Numbers of every magnitude that a moment has, from a block's largest down to zero. */
const wave = (size: number, phase: number): Float32Array =>
  Float32Array.from({ length: size }, (_, i) => (i % 11 === 5 ? 0 : Math.sin(phase + i * 1.3) * 10 ** -((i * 7) % 13)));

function inputsOf(shape: number[], { blockSize, guard, ok }: { blockSize: number; guard: boolean; ok: number }): CodedAdamInputs {
  const size = shape.reduce((a, b) => a * b, 1);
  const momentum = quantizeBlocks(tensor(wave(size, 1)), { signed: true, blockSize });
  const variance = quantizeBlocks(tensor(wave(size, 2).map((v) => v * v)), { signed: false, blockSize, guard });
  return {
    gradient: tensor(wave(size, 3), shape),
    momentumWords: momentum.words,
    momentumScales: momentum.scales,
    varianceWords: variance.words,
    varianceScales: variance.scales,
    factors: tensor([0.19, 0.002, ok]),
  };
}

const bits = (x: Tensor): Int32Array => {
  const { buffer, byteOffset, length } = x.dataSync() as Float32Array;
  return new Int32Array(buffer, byteOffset, length);
};

describe.each(Object.entries(wasmBuilds))('Adam on 8-bit moments (%s)', (_, options) => {
  beforeAll(() => useBuild(options));

  it.each([
    [[1], 256],
    [[7], 4],
    [[64], 64],
    [[65], 64],
    [[13, 77], 256],
    [[3, 300], 1024],
    [[257, 129], 256],
    [[5000], 4096],
  ] as const)('has the bits of decoding, adam and encoding one after the other: [%s] in blocks of %i', (shape, blockSize) => {
    const before = memory().numTensors;
    for (const guard of [true, false]) {
      for (const ok of [1, 0]) {
        tidy(() => {
          const inputs = inputsOf([...shape], { blockSize, guard, ok });
          const attributes = { beta1: 0.9, beta2: 0.999, eps: 1e-8, blockSize, guard, overwrite: false };
          const wanted = codedAdamOp.reference(inputs, attributes);
          const given = runOp(codedAdamOp, inputs, attributes);
          expect(given.map((each) => each.shape)).toEqual(wanted.map((each) => each.shape));
          for (let i = ok === 1 ? 0 : 1; i < 5; i++) expect(bits(given[i]!), `result ${i}`).toEqual(bits(wanted[i]!));
        });
      }
    }
    expect(memory().numTensors).toBe(before);
  });

  it('keeps zeros, and blocks without anything else', () => {
    tidy(() => {
      const inputs = { ...inputsOf([600], { blockSize: 256, guard: true, ok: 1 }), gradient: tensor(new Float32Array(600)) };
      const zero = (x: Tensor): Tensor => tensor(new Int32Array(x.size), x.shape, x.dtype);
      const started = {
        ...inputs,
        momentumScales: zero(inputs.momentumScales),
        varianceScales: zero(inputs.varianceScales),
      } as CodedAdamInputs;
      const attributes = { beta1: 0.9, beta2: 0.999, eps: 1e-8, blockSize: 256, guard: true, overwrite: false };
      const [direction, words, scales] = runOp(codedAdamOp, started, attributes) as [Tensor, Tensor, Tensor];
      expect([...direction.dataSync()].every((v) => v === 0)).toBe(true);
      expect([...scales.dataSync()]).toEqual([0, 0, 0]);
      expect(new Set(words.dataSync())).toEqual(new Set([0x7f7f7f7f]));
    });
  });
});
