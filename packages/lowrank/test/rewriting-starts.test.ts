import { describe, expect, it } from 'vitest';
import {
  createDraw,
  denseParameter,
  memory,
  noise,
  ConfigError,
  ShapeError,
  StateError,
  tensor2d,
  tidy,
  mul,
  type Tensor2D,
} from '@niwaki/tensor';
import { denseWeight, encodeGgufBlocks, ggufBlock, rowsOf } from '@niwaki/weights';
import type { Model, Site } from '@niwaki/nn';
import { distance, logits } from '../../testing/src/contract-model.ts';
import { perturb } from '../../testing/src/perturb.ts';
import { combineAdapters, lora, olora, pissa, type Initializer } from '../src/index.ts';
import { adapt, type AdapterMethod, deleteAdapter, forgetOriginals, mergeAdapter, mergeAndUnload, saveAdapter } from '@niwaki/peft';
import { loadAdapter } from './verbs.ts';
import { memoryFolderSink } from '@niwaki/hub';
import { integers } from './integers.ts';
import { baseBytes, configOf, filesOf, onTiny as runOnTiny, rejection, type Files } from './support.ts';

const values = async (tensor: Tensor2D): Promise<number[]> => Array.from(await tensor.data());

/** One pair from one matrix, outside of any model. */
async function started(
  start: Initializer,
  matrix: number[][],
  { rank = 1, scale = 1 } = {},
): Promise<{ a: number[]; b: number[]; base: number[] }> {
  const weight = denseWeight(denseParameter('m.weight', tensor2d(matrix), { role: 'matrix' }));
  const site: Site = { path: 'm', point: 'linear', weight, inputId: 'x' };
  const [out, width] = weight.shape;
  const { a, b, base } = await start.linear({
    out,
    in: width,
    rank,
    scale,
    draw: createDraw(0, 0),
    aPath: 'm.a',
    bPath: 'm.b',
    weight,
    site,
  });
  const dense = base!.dense();
  const result = { a: await values(a), b: await values(b), base: await values(dense) };
  for (const tensor of [a, b, dense]) tensor.dispose();
  for (const part of [...Object.values(base!.parts), ...Object.values(weight.parts)]) part.dispose();
  return result;
}

/** Largest difference. */
const gap = (given: readonly number[], expected: readonly number[]): number =>
  distance(Float32Array.from(given), Float32Array.from(expected));

/** On a tiny model of which nothing is left. */
const onTiny = async (test: (model: Model) => Promise<void>, config: Record<string, unknown> = {}): Promise<void> => {
  expect(await runOnTiny(test, config)).toBe(0);
};

const wide = { hidden_size: 32, intermediate_size: 32, head_dim: 8 };

describe('the numbers of the papers', () => {
  it('PiSSA of diag(3, 1) at rank 1 takes the 3 out, whatever the scale', async () => {
    const before = memory().numTensors;
    const plain = await started(pissa(), [
      [3, 0],
      [0, 1],
    ]);
    expect(gap(plain.a, [Math.sqrt(3), 0])).toBeLessThan(1e-5);
    expect(gap(plain.base, [0, 0, 0, 1])).toBeLessThan(1e-5);
    const scaled = await started(
      pissa(),
      [
        [3, 0],
        [0, 1],
      ],
      { scale: 2 },
    );
    expect(gap(scaled.a, [1.224745, 0])).toBeLessThan(1e-5);
    expect(gap(scaled.b, [1.224745, 0])).toBeLessThan(1e-5);
    expect(gap(scaled.base, [0, 0, 0, 1])).toBeLessThan(1e-5);
    expect(memory().numTensors).toBe(before);
  });

  it('OLoRA of [[3, 1], [4, 2]] at rank 1 takes the first column of Q and row of R', async () => {
    const { a, b, base } = await started(olora(), [
      [3, 1],
      [4, 2],
    ]);
    expect(gap(b.map(Math.abs), [0.6, 0.8])).toBeLessThan(1e-5);
    expect(gap(a.map(Math.abs), [5, 2.2])).toBeLessThan(1e-5);
    expect(gap(base, [0, -0.32, 0, 0.24])).toBeLessThan(1e-5);
  });

  it('OLoRA of a wide matrix equals the same from the whole decomposition: A has zeros below its diagonal', async () => {
    const { a } = await started(
      olora(),
      [
        [3, 1, 5],
        [4, 2, 1],
      ],
      { rank: 2 },
    );
    expect(gap([a[3]!], [0])).toBeLessThan(1e-5);
    expect(gap([a[0]!, a[1]!, a[2]!], [5, 2.2, 3.8])).toBeLessThan(1e-5);
  });

  it('a few randomized iterations find the principal part of a matrix whose singular values fall', async () => {
    const matrix = Array.from({ length: 40 }, (_, i) => Array.from({ length: 40 }, (__, j) => 1 / (1 + i + 2 * j) + (i === j ? 0.01 : 0)));
    const exact = await started(pissa(), matrix, { rank: 4 });
    const sketched = await started(pissa({ iterations: 4 }), matrix, { rank: 4 });
    expect(gap(sketched.base, exact.base)).toBeLessThan(1e-5);
  });

  it('what is left of a gaussian matrix loses less to 4 bits than the matrix itself', async () => {
    const draw = createDraw(2, 0);
    const values2d = tidy(() => mul(noise([64, 64], draw.at('w'), 'gaussian'), 0.02) as Tensor2D);
    const rows = (await values2d.array()) as number[][];
    values2d.dispose();
    // A few directions that stand out, as trained matrices have them.
    const matrix = rows.map((row, i) => row.map((value, j) => value + 0.3 * Math.sin(i) * Math.cos(2 * j)));
    const quantizer = integers(4, 16);
    const flat = matrix.flat();
    const { a, b, base } = await started(pissa({ quantizer }), matrix, { rank: 4 });
    const error = flat.map((value, at) => {
      const [i, j] = [Math.floor(at / 64), at % 64];
      let product = 0;
      for (let k = 0; k < 4; k++) product += b[4 * i + k]! * a[64 * k + j]!;
      return value - base[at]! - product;
    });
    const plain = await quantizationError(matrix);
    expect(Math.hypot(...error)).toBeLessThan(0.5 * plain);
  });
});

async function quantizationError(matrix: number[][]): Promise<number> {
  const weight = denseWeight(denseParameter('m.weight', tensor2d(matrix), { role: 'matrix' }));
  const { weight: codes } = await integers(4, 16).make({ path: 'm', point: 'linear', weight, inputId: 'x' }, {});
  const dense = codes!.dense();
  const given = await dense.data();
  dense.dispose();
  for (const part of [...Object.values(codes!.parts), ...Object.values(weight.parts)]) part.dispose();
  return Math.hypot(...matrix.flat().map((value, i) => value - given[i]!));
}

const at = ['q_proj', 'down_proj'];

async function trained(model: Model, method: AdapterMethod): Promise<Awaited<ReturnType<typeof adapt>>> {
  const set = await adapt(model, method, { at });
  perturb(set, 3);
  return set;
}

async function nativeFiles(set: Parameters<typeof saveAdapter>[0]): Promise<Files> {
  const sink = memoryFolderSink();
  await saveAdapter(set, sink, { form: 'native' });
  return sink.files;
}

describe('what is written', () => {
  it.each([
    ['pissa', false],
    ['olora', false],
    ['pissa_niter_4', false],
    ['pissa', true],
  ] as const)('%s (rslora %s) ships as a plain LoRA of twice the rank with the same scale', async (init, rslora) => {
    let files: Files = new Map();
    let given = new Float32Array();
    await onTiny(async (model) => {
      const rankPattern = { 'layers.1.self_attn.q_proj': 3 };
      files = await filesOf(await trained(model, lora({ rank: 2, alpha: 6, rslora, init, rankPattern, alphaPattern: { down_proj: 5 } })));
      given = (await logits(model)) as Float32Array<ArrayBuffer>;
    });
    const config = configOf(files);
    expect(config['init_lora_weights']).toBe(true);
    expect(config['r']).toBe(4);
    expect(config['lora_alpha']).toBe(rslora ? 6 * Math.SQRT2 : 12);
    expect(config['rank_pattern']).toEqual({ 'layers.1.self_attn.q_proj': 6 });
    expect(config['alpha_pattern']).toEqual({ down_proj: rslora ? 5 * Math.SQRT2 : 10 });
    expect(Object.keys(config)).not.toContain('niwaki_base_sha256');
    await onTiny(async (model) => {
      const base = await baseBytes(model);
      const set = await loadAdapter(model, files);
      expect(distance(await logits(model), given)).toBeLessThan(1e-5);
      expect(await baseBytes(model)).toEqual(base);
      expect([...set.sites.values()].map((adapter) => adapter.startsFrom)).toEqual(['base', 'base', 'base', 'base']);
    });
  });

  it.each(['pissa', 'olora'] as const)('the native file of %s, as PEFT writes it, is read by rewriting the base again', async (init) => {
    let files: Files = new Map();
    let given = new Float32Array();
    let base = new Map<string, string>();
    await onTiny(async (model) => {
      files = await nativeFiles(await trained(model, lora({ rank: 2, alpha: 6, init })));
      given = (await logits(model)) as Float32Array<ArrayBuffer>;
      base = await baseBytes(model);
    });
    expect(configOf(files)['init_lora_weights']).toBe(init);
    expect(configOf(files)['r']).toBe(2);
    await onTiny(async (model) => {
      const before = await logits(model);
      const frozen = model.sites(at).map((site) => site.weight!.matrix!.trainable);
      const set = await loadAdapter(model, files, { name: 'mine' });
      expect(await logits(model)).toEqual(given);
      expect(await baseBytes(model)).toEqual(base);
      expect(model.sites(at).map((site) => site.weight!.matrix!.trainable)).toEqual(frozen);
      expect(await nativeFiles(set)).toEqual(files);
      deleteAdapter(model, 'mine');
      expect(distance(await logits(model), before)).toBeLessThan(1e-5);
    });
  });

  it('a start that was drawn tells its base by a fingerprint', async () => {
    await onTiny(async (model) => {
      const set = await trained(model, lora({ rank: 2, init: pissa({ iterations: 2 }) }));
      const files = await nativeFiles(set);
      expect(configOf(files)['init_lora_weights']).toBe(true);
      expect(configOf(files)['niwaki_base_sha256']).toMatch(/^[0-9a-f]{64}$/);
      await onTiny(async (other) => {
        const error = await rejection(loadAdapter(other, files));
        expect(error.name).toBe('BaseModelError');
        expect(other.adapters.size).toBe(0);
      });
      model.detach('default');
      const given = await logits(model);
      await loadAdapter(model, files, { name: 'again' });
      expect(distance(await logits(model), given)).toBeGreaterThan(1e-4);
      for (const adapter of set.sites.values()) for (const parameter of Object.values(adapter.parameters)) parameter.dispose();
    });
  });
});

describe('what is refused, before anything changes', () => {
  const refuses = async (model: Model, method: AdapterMethod, options: { at: string | string[] }): Promise<Error> => {
    const [bytes, tensors] = [await baseBytes(model), memory().numTensors];
    const error = await rejection(adapt(model, method, options));
    expect(await baseBytes(model)).toEqual(bytes);
    expect(memory().numTensors).toBe(tensors);
    expect([...model.adapters.keys()].includes('default')).toBe(false);
    return error;
  };

  it('embeddings and heads', () =>
    onTiny(async (model) => {
      expect(await refuses(model, lora({ init: 'pissa', rank: 2 }), { at: 'embed_tokens' })).toBeInstanceOf(ConfigError);
      expect(await refuses(model, lora({ init: 'olora', rank: 2 }), { at: 'lm_head' })).toBeInstanceOf(ConfigError);
    }));

  it('a rank beyond a side, and names of starts that are none', () =>
    onTiny(async (model) => {
      expect(await refuses(model, lora({ init: 'pissa', rank: 17 }), { at })).toBeInstanceOf(ShapeError);
      for (const init of ['pissa_niter_0', 'pissa_niter_', 'pissa_niter_1.5', 'pizza', 'loftq'])
        expect(() => lora({ init: init as 'pissa' })).toThrow(ConfigError);
      expect(() => pissa({ iterations: 0 })).toThrow(ConfigError);
      expect(() => pissa({ quantizer: lora() })).toThrow(ConfigError);
    }));

  it('a matrix with a value that is not finite at the last site', () =>
    onTiny(async (model) => {
      const last = model.sites(at).at(-1)!;
      const [out, width] = last.weight!.shape;
      last.weight!.matrix!.write(tensor2d(new Float32Array(out * width).fill(Number.NaN), [out, width]));
      const error = await refuses(model, lora({ init: 'pissa', rank: 2 }), { at });
      expect(error.name).toBe('NumericError');
      expect(error.message).toContain(last.path);
    }));

  it('sites that have an adapter, and weights that have one merged', () =>
    onTiny(async (model) => {
      await adapt(model, lora({ rank: 2 }), { at: ['q_proj'], name: 'plain' });
      const error = await refuses(model, lora({ init: 'pissa', rank: 2 }), { at });
      expect(error).toBeInstanceOf(StateError);
      expect(error.message).toContain("'plain'");
      await mergeAdapter(model, 'plain');
      expect(await refuses(model, lora({ init: 'pissa', rank: 2 }), { at: ['up_proj'] })).toBeInstanceOf(StateError);
      forgetOriginals(model);
      await adapt(model, lora({ init: 'pissa', rank: 2 }), { at });
    }));

  it('a plain adapter, and a loaded one, at sites that were rewritten; elsewhere they are welcome', () =>
    onTiny(async (model) => {
      await adapt(model, lora({ rank: 2 }), { at: ['q_proj'], name: 'plain' });
      const files = await filesOf(model.adapters.get('plain')!);
      deleteAdapter(model, 'plain');
      await adapt(model, lora({ init: 'olora', rank: 2 }), { at, name: 'rewritten' });
      expect(await refuses(model, lora({ rank: 2 }), { at: ['q_proj'] })).toBeInstanceOf(StateError);
      expect(await rejection(loadAdapter(model, files))).toBeInstanceOf(StateError);
      await adapt(model, lora({ rank: 2 }), { at: ['up_proj'], name: 'elsewhere' });
      await expect(combineAdapters(model, { rewritten: 1 }, { name: 'sum' })).rejects.toThrow(/no plain product/);
    }));

  it('a native file on a base of codes', () =>
    onTiny(async (model) => {
      const files = await nativeFiles(await trained(model, lora({ init: 'pissa', rank: 2 })));
      await onTiny(async (other) => {
        for (const { path, weight } of other.sites(at))
          other.replace(path, ggufBlock(path, weight!.shape, 'Q4_0', await encodeGgufBlocks(path, weight!.shape, rowsOf(weight!), 'Q4_0')));
        const tensors = memory().numTensors;
        const error = await rejection(loadAdapter(other, files));
        expect(error).toBeInstanceOf(ConfigError);
        expect(error.message).toContain('lora (pissa) needs the numbers of a matrix themselves');
        expect(memory().numTensors).toBe(tensors);
      }, wide);
    }, wide));
});

describe('the company of other verbs', () => {
  it('everything unloaded but one adapter leaves the base of the rest as it was', () =>
    onTiny(async (model) => {
      const base = await logits(model);
      await adapt(model, lora({ init: 'pissa', rank: 2 }), { at: ['q_proj'], name: 'one' });
      await adapt(model, lora({ init: 'olora', rank: 2 }), { at: ['up_proj'], name: 'two' });
      model.active = ['two'];
      await mergeAndUnload(model);
      expect(distance(await logits(model), base)).toBeLessThan(1e-5);
    }));

  it('a base of halves becomes f32 where it is rewritten', () =>
    onTiny(async (model) => {
      for (const { path, weight } of model.sites(at))
        model.replace(path, ggufBlock(path, weight!.shape, 'BF16', await encodeGgufBlocks(path, weight!.shape, rowsOf(weight!), 'BF16')));
      const base = await logits(model);
      await adapt(model, lora({ init: 'pissa', rank: 2 }), { at, name: 'mine' });
      expect(model.sites(at).map((site) => site.weight!.kind)).toEqual(['dense', 'dense', 'dense', 'dense']);
      expect(distance(await logits(model), base)).toBeLessThan(1e-5);
      deleteAdapter(model, 'mine');
      expect(distance(await logits(model), base)).toBeLessThan(1e-5);
    }, wide));
});
