import {
  addNoiseOp,
  createDraw,
  noiseOp,
  runOp,
  scalar,
  tensor1d,
  tidy,
  type Distribution,
  type NoiseAttributes,
  type Tensor,
} from '@niwaki/tensor';
import { beforeAll, describe, expect, it } from 'vitest';
import { useBuild, wasmBuilds } from './wasm-builds.ts';

const { seed, step, id, sample } = createDraw(0x1234_5678_9abc_def0n, 7).at('model.layers.0.self_attn.q_proj.weight', 3);
const address = { seedLow: Number(seed & 0xffff_ffffn), seedHigh: Number(seed >> 32n), step, id, sample };

const bitsOf = (tensor: Tensor): Uint32Array => new Uint32Array(tensor.dataSync().buffer);

describe.each(Object.entries(wasmBuilds))('Noise has the bits of the reference (%s)', (_, options) => {
  beforeAll(() => useBuild(options));

  for (const distribution of [
    'gaussian',
    'rademacher',
    'binomial64',
    'irwinhall12',
    'uniform',
    'mask',
  ] as const satisfies readonly Distribution[]) {
    it(`${distribution}, alone and added, of lengths that fill no block, and of one that takes several threads`, () => {
      for (const length of [1, 3, 7, 65, 1000, 50_003]) {
        tidy(() => {
          const attributes: NoiseAttributes = { ...address, distribution, length, keep: 0.3 };
          const [got] = runOp(noiseOp, {}, attributes);
          const [wanted] = noiseOp.reference({}, attributes);
          expect(bitsOf(got!)).toEqual(bitsOf(wanted!));
          const onto = { x: tensor1d(Float32Array.from({ length }, (_, i) => Math.sin(i))), factor: scalar(-0.37) };
          const [sum] = runOp(addNoiseOp, onto, attributes);
          const [wantedSum] = addNoiseOp.reference(onto, attributes);
          expect(bitsOf(sum!)).toEqual(bitsOf(wantedSum!));
        });
      }
    });
  }

  it('keeps all or nothing of a mask at the ends of its range', () => {
    tidy(() => {
      const mask = (keep: number): number[] =>
        Array.from(runOp(noiseOp, {}, { ...address, distribution: 'mask', length: 100, keep })[0]!.dataSync());
      expect(mask(0)).toEqual(Array(100).fill(0));
      expect(mask(1)).toEqual(Array(100).fill(1));
    });
  });
});
