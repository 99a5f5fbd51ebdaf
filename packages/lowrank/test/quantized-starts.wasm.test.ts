import { describe, expect, it } from 'vitest';
import {
  abs,
  add,
  createDraw,
  denseParameter,
  exp,
  matMul,
  max,
  memory,
  mul,
  noise,
  sqrt,
  sub,
  tensor2d,
  tidy,
  transpose,
  ConfigError,
  ShapeError,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import { denseWeight, disposeWeight } from '@niwaki/weights';
import type { Model, Site } from '@niwaki/nn';
import { defineMethod, type Method } from '@niwaki/engine';
import { distance, logits } from '../../testing/src/contract-model.ts';
import { loftq, lora, lqLora, type InitContext, type InitialPair, type LqLoraAllocation } from '../src/index.ts';
import { adapt } from '@niwaki/peft';
import { loadAdapter } from './verbs.ts';
import { decompose, free, weightedPair } from '../src/decompose.ts';
import { integers } from './integers.ts';
import { baseBytes, configOf, filesOf, onTiny as runOnTiny, rejection } from './support.ts';

const onTiny = async (test: (model: Model) => Promise<void>): Promise<void> => {
  expect(await runOnTiny(test)).toBe(0);
};

/** N(0, 0.02²) and, unless `plain`, a direction that stands out, [64, 64]. */
const matrix = ({ plain }: { plain: boolean }): Tensor2D =>
  tidy(() => {
    const draw = createDraw(11, 0);
    const side = (name: string): Tensor2D => noise([64, 1], draw.at(name), 'gaussian') as Tensor2D;
    const rankOne = mul(matMul(side('u'), side('v'), false, true), 0.05);
    const gaussian = mul(noise([64, 64], draw.at('w'), 'gaussian'), 0.02) as Tensor2D;
    return plain ? gaussian : (add(gaussian, rankOne) as Tensor2D);
  });

const norm = async (make: () => Tensor2D): Promise<number> => {
  const tensor = tidy(make);
  const values = await tensor.data();
  tensor.dispose();
  return Math.hypot(...values);
};

/** Runs on a site of one matrix, and checks that nothing is left. */
async function onMatrix(
  run: (context: InitContext, site: Site) => Promise<void>,
  { rank = 4, scale = 1, plain = false } = {},
): Promise<void> {
  const before = memory().numTensors;
  const weight = denseWeight(denseParameter('m.weight', matrix({ plain }), { role: 'matrix' }));
  const site: Site = { path: 'm', point: 'linear', weight, inputId: 'x' };
  await run({ out: 64, in: 64, rank, scale, draw: createDraw(0, 0), aPath: 'm.a', bPath: 'm.b', weight, site }, site);
  disposeWeight(weight);
  expect(memory().numTensors).toBe(before);
}

async function quantizationError(quantizer: Method, site: Site): Promise<number> {
  const { weight } = await quantizer.make(site, {});
  const error = await norm(() => sub(site.weight!.dense(), weight!.dense()) as Tensor2D);
  disposeWeight(weight!);
  return error;
}

const startError = ({ weight, scale }: InitContext, { a, b, base }: InitialPair): Promise<number> =>
  norm(() => sub(sub(weight.dense(), base!.dense()), mul(matMul(b, a), scale)) as Tensor2D);

const release = (pair: InitialPair): void => free({ ...pair, base: pair.base! });

describe('LoftQ', () => {
  it.each([1, 2, 0.25])(
    'starts nearer to the model than codes alone, at a scale of %d, and no farther after more rounds',
    async (scale) => {
      const errors: number[] = [];
      await onMatrix(
        async (context, site) => {
          errors.push(await quantizationError(integers(2, 16), site));
          for (const iterations of [1, 2, 5]) {
            const pair = await loftq({ quantizer: integers(2, 16), iterations }).linear(context);
            errors.push(await startError(context, pair));
            release(pair);
          }
        },
        { scale, rank: 8, plain: true },
      );
      const [alone, one, two, five] = errors as [number, number, number, number];
      expect(one).toBeLessThan(0.95 * alone);
      expect(two).toBeLessThanOrEqual(one);
      expect(five).toBeLessThanOrEqual(two);
    },
  );

  it.each([loftq({ quantizer: integers(4, 8) }), lqLora({ quantizers: [integers(2, 8), integers(4, 8)], bits: 7 })])(
    'starts at the same output whatever the scale, and so does $name',
    async (init) => {
      const outputs: Float32Array[] = [];
      for (const alpha of [4, 16, 64])
        await onTiny(async (model) => {
          await adapt(model, lora({ rank: 4, alpha, init }), { at: 'all-linear' });
          outputs.push(await logits(model));
        });
      expect(distance(outputs[1]!, outputs[0]!)).toBeLessThan(1e-5);
      expect(distance(outputs[2]!, outputs[0]!)).toBeLessThan(1e-5);
    },
  );

  it('writes files for its own base, and says so on another', async () => {
    await onTiny(async (model) => {
      const set = await adapt(model, lora({ rank: 2, init: loftq({ quantizer: integers(4, 8) }) }), { at: ['q_proj'] });
      const files = await filesOf(set);
      expect(configOf(files)['init_lora_weights']).toBe(true);
      await onTiny(async (other) => {
        const [bytes, tensors] = [await baseBytes(other), memory().numTensors];
        const error = await rejection(loadAdapter(other, files));
        expect(error.name).toBe('BaseModelError');
        expect(await baseBytes(other)).toEqual(bytes);
        expect(memory().numTensors).toBe(tensors);
      });
    });
  });

  it('refuses quantizers that are none, and those that do not fit a site, before anything changes', async () => {
    expect(() => loftq({ quantizer: lora() })).toThrow(ConfigError);
    expect(() => loftq({ quantizer: integers(4, 8), iterations: 0 })).toThrow(ConfigError);
    expect(() => loftq({ quantizer: defineMethod({ ...integers(4, 8), traits: {}, collect: {} }) })).toThrow(/made of one matrix alone/);
    await onTiny(async (model) => {
      const bytes = await baseBytes(model);
      const error = await rejection(adapt(model, lora({ rank: 2, init: loftq({ quantizer: integers(4, 32) }) }), { at: ['q_proj'] }));
      expect(error).toBeInstanceOf(ConfigError);
      expect(await baseBytes(model)).toEqual(bytes);
    });
  });
});

describe('LQ-LoRA', () => {
  it('weighs errors by importance: the products of the paper', async () => {
    const [f, m] = [
      tensor2d([
        [4, 4],
        [1, 1],
      ]),
      tensor2d([
        [3, 1],
        [1, 2],
      ]),
    ];
    const address = { rank: 1, scale: 1, draw: createDraw(0, 0), aPath: 'a' };
    const product = async (importance: Tensor2D | undefined): Promise<number[]> => {
      const { a, b } = await weightedPair(m, address, importance);
      const dense = matMul(b, a);
      const values = Array.from(await dense.data());
      for (const tensor of [a, b, dense]) tensor.dispose();
      return values;
    };
    const weighted = await product(f);
    const plain = await product(undefined);
    const constant = tensor2d([
      [7, 7],
      [7, 7],
    ]);
    const same = await product(constant);
    const score = (values: number[]): number =>
      [3, 1, 1, 2].reduce((sum, value, i) => sum + [4, 4, 1, 1][i]! * (value - values[i]!) ** 2, 0);
    for (const [i, value] of [2.926399, 1.182191, 1.554295, 0.627896].entries()) expect(weighted[i]).toBeCloseTo(value, 5);
    for (const [i, value] of [2.618034, 1.618034, 1.618034, 1].entries()) expect(plain[i]).toBeCloseTo(value, 5);
    for (const [i, value] of plain.entries()) expect(same[i]).toBeCloseTo(value, 5);
    expect(score(weighted)).toBeCloseTo(2.344356, 4);
    expect(score(plain)).toBeCloseTo(3.493422, 4);
    for (const tensor of [f, m, constant]) tensor.dispose();
  });

  it('is at rest where the importance is a product of rows and columns', async () => {
    const before = memory().numTensors;
    const draw = createDraw(5, 0);
    const side = (name: string): Tensor2D => tidy(() => exp(noise([12, 1], draw.at(name), 'gaussian')) as Tensor2D);
    const [rows, columns, m] = [side('r'), side('c'), noise([12, 12], draw.at('m'), 'gaussian') as Tensor2D];
    const f = matMul(rows, columns, false, true) as Tensor2D;
    const { a, b } = await weightedPair(m, { rank: 3, scale: 1, draw, aPath: 'a' }, f);
    const gap = (): Tensor2D => mul(f, sub(m, matMul(b, a))) as Tensor2D;
    const largest = async (make: () => Tensor): Promise<number> => {
      const tensor = tidy(() => max(abs(make())));
      const [value] = await tensor.data();
      tensor.dispose();
      return value!;
    };
    expect(await largest(() => matMul(gap(), transpose(a)))).toBeLessThan(1e-5);
    expect(await largest(() => matMul(b, gap(), true, false))).toBeLessThan(1e-5);
    for (const tensor of [rows, columns, m, f, a, b]) tensor.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('loses less with every round it keeps, less than codes alone, and less at a larger rank', async () => {
    const best: number[] = [];
    for (const rank of [4, 16])
      await onMatrix(
        async (context, site) => {
          const alone = await quantizationError(integers(3, 16), site);
          const made = await decompose(context, { quantizer: integers(3, 16), iterations: 100 });
          const { errors } = made;
          expect(errors[0]!).toBeLessThan(alone);
          expect(errors.length).toBeGreaterThan(1);
          for (let i = 1; i < errors.length; i++) expect(errors[i]!).toBeLessThan(errors[i - 1]!);
          expect(await startError(context, made)).toBeCloseTo(errors.at(-1)!, 5);
          best.push(errors.at(-1)!);
          free(made);
        },
        { rank, scale: 0.25 },
      );
    expect(best[1]!).toBeLessThan(0.8 * best[0]!);
  });

  it('loses less of what is important when it knows', async () => {
    await onMatrix(
      async (context, site) => {
        const f = tidy(() => exp(mul(noise([64, 64], createDraw(1, 0).at('f'), 'gaussian'), 1.5)) as Tensor2D);
        // Rows that matter more than others, as in trained models.
        const rows = tidy(() => mul(f, exp(mul(noise([64, 1], createDraw(2, 0).at('f'), 'gaussian'), 2))) as Tensor2D);
        const quantizer = integers(3, 16);
        const knowing = await decompose(context, { quantizer, iterations: 100, importance: rows });
        const blind = await decompose(context, { quantizer, iterations: 100 });
        const { weight: alone } = await quantizer.make(site, {});
        const weighted = (gap: () => Tensor): Promise<number> => norm(() => mul(gap(), sqrt(rows)) as Tensor2D);
        const codes = await weighted(() => sub(context.weight.dense(), alone!.dense()));
        const unweighted = await weighted(() => sub(sub(context.weight.dense(), blind.base.dense()), matMul(blind.b, blind.a)));
        expect(knowing.errors.at(-1)!).toBeLessThan(unweighted);
        expect(unweighted).toBeLessThan(codes);
        disposeWeight(alone!);
        free(knowing);
        free(blind);
        f.dispose();
        rows.dispose();
      },
      { rank: 8 },
    );
  });

  it('keeps to the budget over all matrices and reports what it chose', async () => {
    let report: LqLoraAllocation | undefined;
    const quantizers = [integers(2, 16), integers(4, 16), integers(8, 8), integers(4, 12)];
    await onTiny(async (model) => {
      const start = lqLora({ quantizers, bits: 5, onAllocation: (made) => (report = made) });
      await adapt(model, lora({ rank: 2, init: start }), { at: 'all-linear' });
      expect(report!.bits).toBeLessThanOrEqual(5);
      expect(report!.bits).toBeGreaterThan(4.5);
      const sites = model.sites('all-linear');
      expect(report!.sites.map(({ path }) => path)).toEqual(sites.map(({ path }) => path));
      for (const [i, { weight }] of sites.entries())
        expect((weight!.options as { bits: number }).bits).toBe(report!.sites[i]!.quantizer.options['bits']);
      expect(new Set(report!.sites.map(({ quantizer }) => quantizer.options['bits'])).size).toBeGreaterThan(1);
    });
  });

  it('refuses a budget below the least by name, several quantizers without one, and an importance of another shape', async () => {
    expect(() => lqLora({ quantizers: [] })).toThrow(ConfigError);
    expect(() => lqLora({ quantizers: [integers(2, 8), integers(4, 8)] })).toThrow(ConfigError);
    expect(() => lqLora({ quantizers: [integers(2, 8)], bits: 0 })).toThrow(ConfigError);
    expect(() => lqLora({ quantizers: [integers(2, 8)], iterations: 0.5 })).toThrow(ConfigError);
    await onTiny(async (model) => {
      const [bytes, tensors] = [await baseBytes(model), memory().numTensors];
      const fails = (init: ReturnType<typeof lqLora>): Promise<Error & { details: Record<string, unknown> }> =>
        rejection(adapt(model, lora({ rank: 2, init }), { at: ['q_proj'] }));
      const poor = await fails(lqLora({ quantizers: [integers(2, 16)], bits: 2 }));
      expect(poor).toBeInstanceOf(ConfigError);
      expect(poor.details['least']).toBeGreaterThan(2);
      const importance = new Map([['model.layers.0.self_attn.q_proj', tensor2d([[1]])]]);
      expect(await fails(lqLora({ quantizers: [integers(2, 16)], importance }))).toBeInstanceOf(ShapeError);
      for (const tensor of importance.values()) tensor.dispose();
      expect(await fails(lqLora({ quantizers: [integers(2, 32), integers(4, 32)], bits: 4 }))).toBeInstanceOf(ConfigError);
      const wide = await rejection(adapt(model, lora({ rank: 17, init: lqLora({ quantizers: [integers(2, 8)] }) }), { at: ['q_proj'] }));
      expect([wide.name, wide.message]).toEqual(['ShapeError', expect.stringMatching(/rank 17 .*\[16, 16\]/)]);
      expect(await baseBytes(model)).toEqual(bytes);
      expect(memory().numTensors).toBe(tensors);
    });
  });
});
