import { describe, expect, it } from 'vitest';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';
import {
  concat,
  createDraw,
  denseParameter,
  gather,
  memory,
  mul,
  noise,
  slice,
  tensor1d,
  tidy,
  withAdapters,
  type Parameter,
  type Tensor1D,
  type Tensor2D,
  type Tensor4D,
} from '@niwaki/tensor';
import {
  createKeyValueCache,
  forward,
  generate,
  packedBatch,
  tokenBatch,
  type Adapter,
  type AdapterSet,
  type Model,
  type TokenBatch,
} from '../src/index.ts';

const vocabularySize = 32;

async function onTiny(test: (model: Model) => Promise<void>, config: Record<string, unknown> = {}): Promise<void> {
  const before = memory().numTensors;
  const model = await tinyLlama(config);
  await test(model);
  for (const name of model.adapters.keys()) {
    const set = model.detach(name);
    for (const parameter of new Set([...set.sites.values()].flatMap(({ parameters }) => Object.values(parameters)))) parameter.dispose();
  }
  model.dispose();
  expect(memory().numTensors).toBe(before);
}

const attachAt = (model: Model, name: string, adapters: readonly (readonly [string, Adapter])[]): void => {
  const set: AdapterSet = { name, method: { kind: 'test', options: {} }, sites: new Map(adapters), replaced: new Map(), base: '' };
  model.attach(set);
  model.active = [...model.adapters.keys()];
};

/** Logits of a batch, row by row. */
async function logitsOf(model: Model, batch: TokenBatch, view = {}): Promise<number[][][]> {
  const logits = forward(model, batch, view);
  const values = (await logits.array()) as number[][][];
  logits.dispose();
  for (const field of Object.values(batch)) if (field !== undefined && 'dispose' in field) field.dispose();
  return values;
}

const one = (ids: readonly number[]): TokenBatch => tokenBatch([ids], { vocabularySize });

function gap(a: readonly (readonly number[])[], b: readonly (readonly number[])[]): number {
  if (a.length !== b.length) return Infinity;
  return Math.max(...a.flatMap((row, i) => row.map((value, j) => Math.abs(value - b[i]![j]!))));
}

const scaling = (point: Adapter['point'], factor: number): Adapter => ({
  kind: 'scaling',
  point,
  parameters: {},
  apply: (x, next) => mul(next(x), factor),
});

/** A prompt that is nothing but the embeddings of these tokens. */
function promptOf(model: Model, ids: readonly number[]): Adapter {
  const [site] = model.sites('model.embed_tokens');
  const rows = tidy(() => gather(site!.weight!.dense(), tensor1d([...ids], 'int32')) as Tensor2D);
  const parameter = denseParameter('prompt', rows, { role: 'prompt' });
  return {
    kind: 'prompt',
    point: 'embedding',
    parameters: { prompt: parameter },
    apply: (x, next) => next(x),
    prompt: { count: ids.length, rows: (call) => call.value(parameter) as Tensor2D },
  };
}

/** What a layer's cache holds after some tokens, as a prefix, without rotation where the model has none. */
function prefixesOf(model: Model, count: number): (readonly [string, Adapter])[] {
  return model
    .sites(() => true, { points: ['attention'] })
    .map(({ path }, layer) => {
      const value = tidy(() => noise([2 * count, 8], createDraw(layer, 0).at('prefix'), 'gaussian'));
      const parameter: Parameter = denseParameter(`${path}.prefix`, value, { role: 'prompt' });
      const part = (from: number) => (call: { value(of: Parameter): unknown }) =>
        slice(call.value(parameter) as Tensor2D, [from, 0], [count, 8]) as Tensor2D;
      return [
        path,
        {
          kind: 'prefix',
          point: 'attention',
          parameters: { prefix: parameter },
          apply: (x, next) => next(x),
          prefix: { count, keys: part(0), values: part(count) },
        },
      ] as const;
    });
}

describe('sites of modules', () => {
  it('are found where their point is asked for, and nowhere else', () =>
    onTiny(async (model) => {
      const linear = model.sites('all-linear').map(({ path }) => path);
      expect(linear.length).toBe(14);
      expect(model.sites(() => true).every(({ weight }) => weight !== undefined)).toBe(true);
      expect(model.sites('model.layers.0.**').every(({ point }) => point === 'linear')).toBe(true);
      expect(() => model.sites('model.layers.*.self_attn')).toThrow(/self_attn/);
      const found = model.sites(['**.self_attn', '**.mlp'], { points: ['attention', 'ffn'] });
      expect(found.map(({ path, point }) => `${path} ${point}`)).toEqual([
        'model.layers.0.self_attn attention',
        'model.layers.0.mlp ffn',
        'model.layers.1.self_attn attention',
        'model.layers.1.mlp ffn',
      ]);
      expect(model.sites('**', { points: ['block'] }).map(({ path }) => path)).toEqual(['model.layers.0', 'model.layers.1']);
      expect(model.sites('**', { points: ['norm'] }).map(({ path }) => path)).toEqual([
        'model.layers.0.input_layernorm',
        'model.layers.0.post_attention_layernorm',
        'model.layers.1.input_layernorm',
        'model.layers.1.post_attention_layernorm',
        'model.norm',
      ]);
      expect(() => model.replace('model.layers.0.mlp', model.sites('all-linear')[0]!.weight!)).toThrow(/model.layers.0.mlp/);
    }));

  it('take an adapter around what is added to the residual stream', () =>
    onTiny(async (model) => {
      const base = await logitsOf(model, one([1, 2, 3]));
      attachAt(model, 'ones', [['model.layers.0.mlp', scaling('sublayer', 1)]]);
      expect(await logitsOf(model, one([1, 2, 3]))).toEqual(base);
      attachAt(model, 'off', [
        ['model.layers.0.self_attn', scaling('sublayer', 0)],
        ['model.layers.0.mlp', scaling('ffn', 0)],
      ]);
      const without = await logitsOf(model, one([1, 2, 3]));
      expect(without).not.toEqual(base);
      // A layer that adds nothing is the same as a block adapter that does not call it.
      const skip: Adapter = { kind: 'skip', point: 'block', parameters: {}, apply: (x) => x.clone() as Tensor2D };
      attachAt(model, 'skip', [['model.layers.0', skip]]);
      model.active = ['skip'];
      expect(gap((await logitsOf(model, one([1, 2, 3])))[0]!, without[0]!)).toBeLessThan(1e-5);
      expect(await logitsOf(model, one([1, 2, 3]), { view: withAdapters('none') })).toEqual(base);
    }));

  it('refuse adapters of another point, and one adapter a row', () =>
    onTiny(async (model) => {
      expect(() => attachAt(model, 'wrong', [['model.layers.0.mlp', scaling('attention', 1)]])).toThrow(/ffn/);
      attachAt(model, 'a', [['model.layers.0.mlp', scaling('sublayer', 2)]]);
      const index = tensor1d([0], 'int32') as Tensor1D;
      const batch = one([1, 2]);
      expect(() => forward(model, batch, { view: withAdapters(index) })).toThrow(/a batch with an adapter for each row needs .*(delta)/);
      index.dispose();
      for (const field of Object.values(batch)) if (field !== undefined && 'dispose' in field) field.dispose();
    }));
});

describe('a prompt', () => {
  it.each([{}, { model_type: 'mistral', sliding_window: 16 }])('of the embeddings of tokens is those tokens: %o', (config) =>
    onTiny(async (model) => {
      const whole = await logitsOf(model, one([7, 8, 9, 1, 2, 3]));
      attachAt(model, 'prompt', [['model.embed_tokens', promptOf(model, [7, 8, 9])]]);
      expect(gap((await logitsOf(model, one([1, 2, 3])))[0]!, whole[0]!.slice(3))).toBeLessThan(1e-5);
    }, config),
  );

  it.each(['left', 'right'] as const)('stands before each sequence of a batch padded on the %s', (padSide) =>
    onTiny(async (model) => {
      const rows = [
        [1, 2, 3, 4],
        [5, 6],
      ];
      const whole = await Promise.all(rows.map((row) => logitsOf(model, one([7, 8, 9, ...row]))));
      attachAt(model, 'prompt', [['model.embed_tokens', promptOf(model, [7, 8, 9])]]);
      const padded = await logitsOf(model, tokenBatch(rows, { vocabularySize, padSide }));
      expect(gap(padded[0]!, whole[0]![0]!.slice(3))).toBeLessThan(1e-5);
      expect(gap(padSide === 'left' ? padded[1]!.slice(2) : padded[1]!.slice(0, 2), whole[1]![0]!.slice(3))).toBeLessThan(1e-5);
    }),
  );

  it('stands before each document of a packed row', () =>
    onTiny(async (model) => {
      const documents = [
        [1, 2, 3],
        [5, 6],
      ];
      const whole = await Promise.all(documents.map((ids) => logitsOf(model, one([7, 8, ...ids]))));
      attachAt(model, 'prompt', [['model.embed_tokens', promptOf(model, [7, 8])]]);
      const packed = await logitsOf(model, packedBatch([documents], { vocabularySize }));
      expect(gap(packed[0]!, [...whole[0]![0]!.slice(2), ...whole[1]![0]!.slice(2)])).toBeLessThan(1e-5);
    }));

  it('adds up with another', () =>
    onTiny(async (model) => {
      const whole = await logitsOf(model, one([7, 8, 9, 1, 2]));
      attachAt(model, 'a', [['model.embed_tokens', promptOf(model, [7])]]);
      const b = promptOf(model, [8, 9]);
      attachAt(model, 'b', [['model.embed_tokens', { ...b, parameters: {} }]]);
      expect(gap((await logitsOf(model, one([1, 2])))[0]!, whole[0]!.slice(3))).toBeLessThan(1e-5);
      b.parameters['prompt']!.dispose();
    }));

  it('generates what the tokens would', () =>
    onTiny(async (model) => {
      const ids = async (prompt: number[], cache: boolean): Promise<number[]> => {
        const found: number[] = [];
        for await (const { id } of generate(model, prompt, { maxNewTokens: 8, cache, stopIds: [] })) found.push(id);
        return found;
      };
      const whole = await ids([7, 8, 9, 1, 2], true);
      attachAt(model, 'prompt', [['model.embed_tokens', promptOf(model, [7, 8, 9])]]);
      expect(await ids([1, 2], true)).toEqual(whole);
      expect(await ids([1, 2], false)).toEqual(whole);
    }));
});

describe('a prefix', () => {
  it.each(['left', 'right'] as const)('is seen by every token of a batch padded on the %s', (padSide) =>
    onTiny(async (model) => {
      attachAt(model, 'prefix', prefixesOf(model, 3));
      const rows = [
        [1, 2, 3, 4],
        [5, 6],
      ];
      const alone = await Promise.all(rows.map((row) => logitsOf(model, one(row))));
      const padded = await logitsOf(model, tokenBatch(rows, { vocabularySize, padSide }));
      expect(gap(padded[0]!, alone[0]![0]!)).toBeLessThan(1e-5);
      expect(gap(padSide === 'left' ? padded[1]!.slice(2) : padded[1]!.slice(0, 2), alone[1]![0]!)).toBeLessThan(1e-5);
    }),
  );

  it('is seen by every document of a packed row, and shows', () =>
    onTiny(async (model) => {
      const base = await logitsOf(model, one([1, 2, 3]));
      attachAt(model, 'prefix', prefixesOf(model, 2));
      const documents = [
        [1, 2, 3],
        [5, 6],
      ];
      const alone = await Promise.all(documents.map((ids) => logitsOf(model, one(ids))));
      const packed = await logitsOf(model, packedBatch([documents], { vocabularySize }));
      expect(
        gap(
          packed[0]!,
          alone.flatMap(([rows]) => rows!),
        ),
      ).toBeLessThan(1e-5);
      expect(alone[0]).not.toEqual(base);
    }));

  it('gives the same with bounds and without, and the same tokens with and without a cache', () =>
    onTiny(async (model) => {
      attachAt(model, 'prefix', prefixesOf(model, 3));
      attachAt(model, 'prompt', [['model.embed_tokens', promptOf(model, [7, 8])]]);
      const { tokenIds, ...bounds } = one([1, 2, 3]);
      bounds.keysFrom.dispose();
      bounds.keysTo.dispose();
      const bare = forward(model, { tokenIds });
      expect(gap(((await bare.array()) as number[][][])[0]!, (await logitsOf(model, one([1, 2, 3])))[0]!)).toBeLessThan(1e-5);
      bare.dispose();
      tokenIds.dispose();
      const ids = async (cache: boolean): Promise<number[]> => {
        const found: number[] = [];
        for await (const { id } of generate(model, [1, 2], { maxNewTokens: 8, cache, stopIds: [] })) found.push(id);
        return found;
      };
      expect(await ids(true)).toEqual(await ids(false));
    }));

  it('cannot change under a cache', () => {
    const before = memory().numTensors;
    const cache = createKeyValueCache();
    tidy(() => {
      const rows = noise([1, 3, 2, 4], createDraw(0, 0).at('k'), 'gaussian') as Tensor4D;
      cache.extend('layer', rows, rows, 2);
      cache.advance(1);
      expect(() => cache.extend('layer', rows, rows, 0)).toThrow(/2 rows/);
      const first = (k: Tensor4D, count: number): ArrayLike<number> => slice(k, [0, 0, 0, 0], [1, count, 2, 4]).dataSync();
      expect(first(cache.extend('layer', rows, rows, 2).k, 6)).toEqual(concat([rows, rows], 1).dataSync());
      cache.truncate(0);
      expect(first(cache.extend('layer', rows, rows, 0).k, 3)).toEqual(rows.dataSync());
    });
    cache.dispose();
    expect(memory().numTensors).toBe(before);
  });
});
