import { describe, expect, it } from 'vitest';
import {
  add,
  ConfigError,
  createDraw,
  dispose,
  fill,
  mul,
  openMemoryLedger,
  plainView,
  tensor2d,
  tidy,
  withAdapters,
  type Parameter,
  type Tensor,
  type Tensor2D,
} from '@niwaki/tensor';
import { createCall } from '@niwaki/weights';
import { blockwiseBackprop, causalLM, disposeBatch, fullTapeBackprop, languageBatch, type Estimator } from '@niwaki/engine';
import {
  createKeyValueCache,
  forward,
  generate,
  tokenBatch,
  type AdapterSet,
  type GeneratedToken,
  type Model,
  type ModelInfo,
  type Site,
} from '@niwaki/nn';
import { distance, logits, onTiny, rows, sizeOf, trainable } from '../../testing/src/contract-model.ts';
import { modelGradientError, tapeDifference } from '../../testing/src/model-gradient.ts';
import { perturb } from '../../testing/src/perturb.ts';
import { lora, prefixTuning, promptTuning, qst, type QstOptions } from '../src/index.ts';
import { adapt, mergeAdapter } from '@niwaki/peft';
import { loadAdapter } from './verbs.ts';
import { launchesOf, totalOf } from '../../testing/src/count-launches.ts';
import { configOf, filesOf, rejection } from './support.ts';

const small = { hidden_size: 64, intermediate_size: 172, num_key_value_heads: 4, head_dim: 16 };
const options: QstOptions = { reduction: 2, rank: 4 };

const adapted = async (model: Model, given: QstOptions = options): Promise<AdapterSet> => {
  const set = await adapt(model, qst(given), { at: '**' });
  perturb(set, 3);
  return set;
};

/** Of a gradient against differences: the loss is curved where small numbers are normalized. */
const curved = 2e-3;

const parameterOf = (model: Model, path: string): Parameter => model.parameters().get(path)!;

/** A number for each slot of the whole network, by what it belongs to. */
function counts(
  config: Record<string, unknown>,
  given: QstOptions,
): Record<'down' | 'layers' | 'z' | 'norm' | 'up' | 'alpha' | 'total', number> {
  const model = { info: { family: 'llama', config: { model_type: 'llama', ...config } } as unknown as ModelInfo } as Model;
  const method = qst(given);
  const at = (point: Site['point']): [string, number][] =>
    Object.entries(method.stored({ path: point, point, inputId: point }, model)).map(([slot, shape]) => [slot, sizeOf(shape as number[])]);
  const blocks = Array.from({ length: config['num_hidden_layers'] as number }, () => at('block')).flat();
  const sum = (prefix: string): number =>
    [...at('embedding'), ...blocks, ...at('head')].reduce((total, [slot, size]) => total + (slot.startsWith(prefix) ? size : 0), 0);
  return {
    down: sum('downsample.'),
    layers: sum('qst_layer.'),
    z: sum('qst_z'),
    norm: sum('norm_qst'),
    up: sum('upsample.'),
    alpha: sum('lm_head_z'),
    total: sum(''),
  };
}

describe('what it trains', () => {
  it('is what the formula says, for a small case and for Llama 2', async () => {
    const config = { ...small, num_hidden_layers: 2, num_attention_heads: 4, vocab_size: 32 };
    const found = counts(config, { reduction: 4, rank: 4 });
    expect(found).toEqual({ down: 704, layers: 6240, z: 32, norm: 16, up: 1088, alpha: 64, total: 8144 });
    const llama = (hidden: number, mlp: number, layers: number, heads: number, kvHeads: number): Record<string, unknown> => ({
      hidden_size: hidden,
      intermediate_size: mlp,
      num_hidden_layers: layers,
      num_attention_heads: heads,
      num_key_value_heads: kvHeads,
      vocab_size: 32_000,
    });
    expect(counts(llama(4096, 11_008, 32, 32, 32), {}).total).toBe(28_623_104);
    expect(counts(llama(8192, 28_672, 80, 64, 8), {}).total).toBe(282_944_000);
    await onTiny(async (model) => {
      await adapt(model, qst({ reduction: 4, rank: 4 }), { at: '**' });
      expect(trainable(model).reduce((bytes, parameter) => bytes + parameter.bytes(), 0)).toBe(4 * 8144);
    }, small);
  });

  it.each<[QstOptions['downsample'], number]>([
    ['lora', 2 * (16 * 4 + 4 * 8 + 16)],
    ['linear', 2 * (16 * 8 + 16)],
    ['average', 0],
    ['max', 0],
  ])('narrows hidden states by %s too, which trains %s numbers, and its gradients are right', (downsample, numbers) =>
    onTiny(async (model) => {
      const set = await adapted(model, { ...options, downsample: downsample! });
      const own = [...set.sites.values()].flatMap(({ parameters }) => Object.entries(parameters));
      expect(own.reduce((sum, [slot, { shape }]) => sum + (slot.startsWith('downsample.') ? sizeOf(shape) : 0), 0)).toBe(numbers);
      for (const [slot, parameter] of own) parameter.trainable = /^downsample|^qst_z/.test(slot);
      expect(await modelGradientError(model)).toBeLessThan(curved);
    }),
  );

  it('pools neighboring features: of 1 to 8 by fours 2.5 and 6.5 on average, and at most 4 and 8', async () => {
    for (const [downsample, expected] of [
      ['average', [2.5, 6.5]],
      ['max', [4, 8]],
    ] as const) {
      await onTiny(
        async (model) => {
          const set = await adapt(model, qst({ reduction: 4, downsample }), { at: '**' });
          const stage = model.stages().find(({ path }) => path === 'model.layers.0.downsample.default')!;
          expect(stage.parameters()).toEqual([]);
          const h = tensor2d([[1, 2, 3, 4, 5, 6, 7, 8]]);
          const narrow = tidy(() => stage.run({ h }, createCall({ batch: {} }))[`qst.${set.name}.narrow`]!);
          expect(Array.from(await narrow.data())).toEqual(expected);
          dispose([h, narrow]);
        },
        { hidden_size: 8, num_attention_heads: 1, num_key_value_heads: 1, head_dim: 8 },
      );
    }
  });
});

describe('before the head', () => {
  it('starts as the base, bit for bit, and with codeCompat at 0.26894 of its own', async () => {
    await onTiny(async (model) => {
      const base = await logits(model);
      await adapt(model, qst(options), { at: '**' });
      expect(await logits(model)).toEqual(base);
    });
    await onTiny(async (model) => {
      const base = await logits(model);
      const set = await adapt(model, qst({ ...options, codeCompat: true }), { at: '**' });
      expect(distance(await logits(model), base)).toBeGreaterThan(1e-3);
      const { parameters, apply } = set.sites.get('lm_head')!;
      parameters['upsample.weight']!.write(fill([16, 8], 0));
      parameters['upsample.bias']!.write(fill([16], 10));
      const [x, s] = [fill([1, 16], 100), fill([1, 8], 1)];
      const call = { ...createCall({ batch: {} }), streams: { 'qst.default': s } };
      const o = tidy(() => apply(x, (mixed) => add(mixed, 0) as Tensor2D, call, model.sites('lm_head')[0]!));
      for (const value of await o.data()) expect(Math.abs(value - (0.2689414 * 10 + 0.7310586 * 100))).toBeLessThan(1e-4);
      dispose([x, s, o]);
    });
  });
});

/** The side network's state behind its last block. */
async function stateOf(model: Model, name = 'default'): Promise<Float32Array> {
  const emitted = new Map<string, Tensor[]>();
  const tokenIds = tensor2d(rows.flat(), [2, 5], 'int32');
  forward(model, { tokenIds }, { emitted }).dispose();
  const values = (await emitted.get(`model.layers.1.qst_layer.${name}`)![0]!.data()) as Float32Array;
  dispose([tokenIds, ...[...emitted.values()].flat()]);
  return values;
}

const gate = (model: Model, value: number): void => {
  for (const block of [0, 1]) parameterOf(model, `model.layers.${block}.qst_z.default`).write(fill([8], value));
};

describe('the gate between the state and what the base gives', () => {
  it('starts at sigmoid(0.5) = 0.62246, and trains', () =>
    onTiny(async (model) => {
      const set = await adapt(model, qst(options), { at: '**' });
      const z = parameterOf(model, 'model.layers.0.qst_z.default');
      expect(Array.from(await z.read().data())).toEqual(Array.from({ length: 8 }, () => 0.5));
      perturb(set, 3);
      const { gradients } = await measured(model, blockwiseBackprop());
      for (const block of [0, 1])
        expect(Math.max(...gradients.get(`model.layers.${block}.qst_z.default`)!.map(Math.abs))).toBeGreaterThan(1e-5);
      // With a state of 0, half of what is narrow goes through at z = 0, and 1 - 0.62246 at 0.5: tell them apart by the mix itself.
      const stage = model.stages().find(({ path }) => path === 'model.layers.0.qst_layer.default')!;
      for (const parameter of stage.parameters()) if (/proj/.test(parameter.path)) parameter.write(fill([...parameter.shape], 0));
      z.write(fill([8], 0.5));
      const tokenIds = tensor2d([[1]], [1, 1], 'int32');
      const mixed = tidy(() => {
        const bound = (value: number): Tensor => tensor2d([[value]], [1, 1], 'int32');
        const streams = { s: fill([1, 8], 1), narrow: fill([1, 8], 0), cos: fill([1, 1], 1), sin: fill([1, 1], 0) };
        const named = Object.fromEntries(
          Object.entries(streams).map(([name, value]) => [name === 's' ? 'qst.default' : `qst.default.${name}`, value]),
        );
        return stage.run({ ...named, from: bound(0), to: bound(1) }, createCall({ batch: { tokenIds } }))['qst.default']!;
      });
      for (const value of await mixed.data()) expect(Math.abs(value - 0.62246)).toBeLessThan(1e-5);
      dispose([mixed, tokenIds]);
    }));

  it('at 1 leaves the embeddings alone as input, at 0 forgets the state before', () =>
    onTiny(async (model) => {
      await adapted(model);
      const disturb = (path: string): void => {
        const parameter = parameterOf(model, path);
        parameter.write(tidy(() => mul(parameter.read(), -1)));
      };
      gate(model, 200);
      const closed = await stateOf(model);
      disturb('model.layers.0.mlp.down_proj.weight');
      expect(await stateOf(model)).toEqual(closed);
      disturb('model.embed_tokens.weight');
      expect(distance(await stateOf(model), closed)).toBeGreaterThan(1e-3);
      gate(model, -200);
      const open = await stateOf(model);
      disturb('model.layers.0.qst_layer.mlp.down_proj.default.weight');
      expect(await stateOf(model)).toEqual(open);
      disturb('model.layers.0.mlp.down_proj.weight');
      expect(distance(await stateOf(model), open)).toBeGreaterThan(1e-3);
    }));
});

interface Measured {
  readonly loss: number;
  readonly gradients: ReadonlyMap<string, Float32Array>;
  /** Bytes when the forward pass has ended, beyond those before it, and at most. */
  readonly held: number;
  readonly peak: number;
}

const ids = [3, 17, 5, 29, 8, 1, 22, 14];

/** One estimate on one row of 8 tokens. */
async function measured(model: Model, estimator: Estimator): Promise<Measured> {
  const batch = languageBatch([{ ids }], { vocabularySize: model.info.vocabularySize });
  const ledger = openMemoryLedger();
  const before = ledger.bytes();
  const after: number[] = [];
  const found: [Parameter, Tensor][] = [];
  const objective = causalLM();
  const loss = await estimator.estimate(
    {
      model,
      objective,
      batch,
      wrt: new Set(trainable(model)),
      view: plainView,
      at: { attempt: 0, phaseStep: 0, micro: 0, pass: 0 },
      draw: createDraw(1, 0),
      scale: 1 / objective.weight(batch),
      between: async () => void after.push(ledger.bytes() - before),
    },
    { push: (parameter, gradient) => gradient.kind === 'dense' && found.push([parameter, gradient.value]) },
  );
  const peak = ledger.peak() - before;
  ledger.dispose();
  const gradients = new Map<string, Float32Array>();
  for (const [{ path }, value] of found) gradients.set(path, (await value.data()) as Float32Array);
  const [value] = await loss.data();
  dispose([loss, ...found.map(([, gradient]) => gradient)]);
  disposeBatch(batch);
  // One piece a stage on the way forward, the head's apart.
  return { loss: value!, gradients, held: after[model.stages().length - 2]!, peak };
}

/** Runs something on the same model with what its blocks give on `ids` computed once: they do nothing any more. */
async function withoutBlocks<T>(model: Model, use: (model: Model) => Promise<T>): Promise<T> {
  const emitted = new Map<string, Tensor[]>();
  const tokenIds = tensor2d([ids], [1, ids.length], 'int32');
  forward(model, { tokenIds }, { emitted, view: withAdapters('none') }).dispose();
  const stages = (): ReturnType<Model['stages']> =>
    model.stages().map((stage) => {
      const h = /^model\.layers\.\d+$/.test(stage.path) ? emitted.get(stage.path)![0]! : undefined;
      return h === undefined ? stage : { ...stage, run: () => ({ h: h.clone() }) };
    });
  try {
    return await use({ ...model, stages });
  } finally {
    dispose([tokenIds, ...[...emitted.values()].flat()]);
  }
}

/** Launches of one run of the model's blocks alone. */
async function launchesOfBlocks(model: Model): Promise<number> {
  const tokenIds = tensor2d([ids], [1, ids.length], 'int32');
  const call = createCall({ batch: { tokenIds }, view: withAdapters('none') });
  const [embed, ...rest] = model.stages();
  let carry = tidy(() => embed!.run({}, call));
  const counted = await launchesOf(async () => {
    for (const stage of rest.filter(({ path }) => /^model\.layers\.\d+$/.test(path))) {
      const out = tidy(() => stage.run(carry, call));
      carry['h']!.dispose();
      carry = { ...carry, ...out };
    }
  });
  dispose([tokenIds, ...Object.values(carry)]);
  return totalOf(counted);
}

const estimators: readonly (() => Estimator)[] = [blockwiseBackprop, fullTapeBackprop];

describe('the base', () => {
  it('gives hidden states and nothing else: from a cache of them, loss and gradients are the same', () =>
    onTiny(async (model) => {
      await adapted(model);
      for (const make of estimators) {
        const whole = await measured(model, make());
        const cached = await withoutBlocks(model, (other) => measured(other, make()));
        expect({ loss: cached.loss, gradients: cached.gradients }).toEqual({ loss: whole.loss, gradients: whole.gradients });
        expect([...whole.gradients.keys()].sort()).toEqual(
          trainable(model)
            .map(({ path }) => path)
            .sort(),
        );
      }
    }));

  it('runs once: a step launches what it would beside a cache, and the blocks forward; with LoRA they run backward too', async () => {
    const costs = async (prepare: (model: Model) => Promise<unknown>): Promise<[apart: number, blocks: number]> => {
      let result: [number, number] = [0, 0];
      await onTiny(async (model) => {
        await prepare(model);
        const step = (of: Model): Promise<number> => launchesOf(async () => void (await measured(of, blockwiseBackprop()))).then(totalOf);
        result = [(await step(model)) - (await withoutBlocks(model, step)), await launchesOfBlocks(model)];
      });
      return result;
    };
    const [side, blocks] = await costs(adapted);
    expect(side).toBe(blocks);
    const [low] = await costs((model) => adapt(model, lora({ rank: 2 }), { at: 'all-linear' }));
    // Forward, forward again, and backward; exactly that where a map and its adapter are one kernel.
    expect(low).toBeGreaterThanOrEqual(3 * blocks);
  });

  it('leaves for the backward pass what is made narrow there, one hidden state a block, and nothing to a pooling', async () => {
    const held = async (layers: number, given: QstOptions | undefined, make: () => Estimator): Promise<Measured> => {
      let result: Measured | undefined;
      await onTiny(
        async (model) => {
          await (given === undefined ? adapt(model, lora({ rank: 2 }), { at: 'all-linear' }) : adapted(model, given));
          result = await measured(model, make());
          for (const path of result.gradients.keys()) expect(path).toMatch(given === undefined ? /lora/ : /default/);
        },
        { num_hidden_layers: layers },
      );
      return result!;
    };
    const perLayer = async (given: QstOptions | undefined, make: () => Estimator): Promise<number> =>
      ((await held(4, given, make)).held - (await held(2, given, make)).held) / 2;
    const [wide, narrow] = [8 * 16 * 4, 8 * 8 * 4];
    // The state and what is mixed into it, and the hidden state where a matrix is trained on it.
    expect(await perLayer(options, blockwiseBackprop)).toBe(2 * narrow + wide);
    expect(await perLayer({ ...options, downsample: 'average' }, blockwiseBackprop)).toBe(2 * narrow);
    expect(await perLayer(undefined, blockwiseBackprop)).toBe(wide);
    const tapes = [await perLayer(options, fullTapeBackprop), await perLayer(undefined, fullTapeBackprop)] as const;
    expect(tapes[0]).toBeLessThan(tapes[1]);
    await onTiny(async (model) => {
      await adapted(model);
      for (const make of estimators) {
        const [whole, cached] = [await measured(model, make()), await withoutBlocks(model, (other) => measured(other, make()))];
        // The cache itself stays: one hidden state a block.
        expect(whole.held - cached.held).toBe(2 * wide);
      }
    });
  });
});

describe('along the sequence', () => {
  it('sees no later token', () =>
    onTiny(async (model) => {
      await adapted(model);
      const [a, b] = [await logits(model, undefined, [[1, 2, 3, 4, 5]]), await logits(model, undefined, [[1, 2, 3, 4, 9]])];
      expect(a.subarray(0, 4 * 32)).toEqual(b.subarray(0, 4 * 32));
      expect(distance(a, b)).toBeGreaterThan(1e-3);
    }));

  it('gives padded rows what they have alone', () =>
    onTiny(async (model) => {
      await adapted(model);
      const batch = tokenBatch(
        [
          [7, 3, 9, 1, 4, 2],
          [5, 6, 8],
        ],
        { vocabularySize: 32, padSide: 'left' },
      );
      const whole = forward(model, batch);
      const values = (await whole.data()) as Float32Array;
      const alone = await logits(model, undefined, [[5, 6, 8]]);
      expect(distance(values.subarray(9 * 32), alone)).toBeLessThan(1e-5);
      disposeBatch(batch);
      whole.dispose();
    }));

  it('generates from two caches what it computes anew, the second of its own width, behind a prefix too', () =>
    onTiny(async (model) => {
      await adapted(model);
      const whole = await logits(model, undefined, [ids]);
      const cache = createKeyValueCache();
      for (const [t, id] of ids.entries()) {
        const tokenIds = tensor2d([[id]], [1, 1], 'int32');
        const one = forward(model, { tokenIds }, { session: { cache } });
        expect(distance((await one.data()) as Float32Array, whole.subarray(t * 32, (t + 1) * 32))).toBeLessThan(1e-4);
        dispose([one, tokenIds]);
      }
      // Keys and values of two layers and 64 rows, of which 8 are tokens, on two heads, of 4 numbers in the base and of 2 beside it.
      expect(cache.bytes()).toBe(2 * 2 * 64 * 2 * (4 + 2) * 4);
      cache.dispose();
      perturb(await adapt(model, prefixTuning({ virtualTokens: 3 }), { at: '**.self_attn', name: 'prefix' }), 5);
      model.active = ['prefix', 'default'];
      const texts: GeneratedToken[][] = [];
      for (const cached of [true, false]) {
        const text: GeneratedToken[] = [];
        for await (const token of generate(model, [1, 2], { maxNewTokens: 5, stopIds: [], cache: cached, logProbabilities: true }))
          text.push(token);
        texts.push(text);
      }
      expect(texts[0]!.map(({ id }) => id)).toEqual(texts[1]!.map(({ id }) => id));
      for (const [t, { logProbability }] of texts[0]!.entries())
        expect(Math.abs(logProbability! - texts[1]![t]!.logProbability!)).toBeLessThan(1e-4);
    }));
});

it('lets gradients through to a LoRA inside the base, where one trains', () =>
  onTiny(async (model) => {
    const beside = await adapted(model, { ...options, downsample: 'average' });
    const inside = await adapt(model, lora({ rank: 2 }), { at: 'v_proj', name: 'inside' });
    perturb(inside, 3);
    model.active = ['inside', 'default'];
    expect(await modelGradientError(model)).toBeLessThan(curved);
    for (const { parameters } of beside.sites.values()) for (const parameter of Object.values(parameters)) parameter.trainable = true;
    expect(await tapeDifference(model)).toBeLessThan(1e-6);
  }));

describe('its file', () => {
  it('says the options, stores each tensor once, and comes back with its number of heads', () =>
    onTiny(async (model) => {
      const set = await adapted(model, { ...options, heads: 2, downsample: 'linear' });
      const [given, files] = [await logits(model), await filesOf(set)];
      expect(configOf(files)).toMatchObject({
        peft_type: 'QST',
        r: 2,
        peft_hidden_size: 4,
        downsample: 'linear',
        num_attention_heads: 2,
        code_compat: false,
      });
      await onTiny(async (other) => {
        await loadAdapter(other, files);
        expect(await logits(other)).toEqual(given);
      });
    }));

  it('is refused by a model of another width, which stays as it was', () =>
    onTiny(async (model) => {
      const files = await filesOf(await adapted(model));
      await onTiny(
        async (other) => {
          const before = await logits(other);
          await expect(loadAdapter(other, files)).rejects.toThrow(/\[4,16\] in the file/);
          expect(other.adapters.size).toBe(0);
          expect(await logits(other)).toEqual(before);
        },
        { hidden_size: 32, head_dim: 8 },
      );
    }));
});

describe('what cannot be', () => {
  it.each<[QstOptions, Record<string, unknown>, RegExp, object]>([
    [{ reduction: 3 }, {}, /reduction of 3/, { nearest: [2, 1] }],
    [{ reduction: 4 }, {}, /4 heads of a width of 16/, { nearest: [2, 1] }],
    [{ reduction: 2, heads: 3 }, {}, /3 heads/, { field: 'reduction' }],
    [{ reduction: 2, heads: 1 }, {}, /whole number of key-value heads/, { field: 'heads' }],
    [{}, { hidden_size: 64, head_dim: 16, intermediate_size: 8 }, /reduction of 16/, { nearest: [8, 4] }],
    [{ reduction: 0 }, {}, /reduction must be a whole number of at least 1, got 0/, { field: 'reduction' }],
    [{ rank: 0 }, {}, /rank must be a whole number of at least 1, got 0/, { field: 'rank' }],
    [{ downsample: 'none' as 'max' }, {}, /downsample must be one of/, { field: 'downsample' }],
  ])('%j on a model with %j', (given, config, message, details) =>
    onTiny(async (model) => {
      const error = await rejection((async () => adapt(model, qst(given), { at: '**' }))());
      expect(error).toBeInstanceOf(ConfigError);
      expect(error.message).toMatch(message);
      expect(error.details).toMatchObject(details);
      expect(model.adapters.size).toBe(0);
    }, config),
  );

  it('a part of the model, a prompt beside it, rotary divisors for another head size, a merge', () =>
    onTiny(async (model) => {
      expect((await rejection(adapt(model, qst(options), { at: ['layers.0', 'lm_head'] }))).message).toMatch(
        /'model.embed_tokens' is not among/,
      );
      await adapted(model);
      await expect(mergeAdapter(model)).rejects.toThrow(ConfigError);
      await adapt(model, promptTuning({ virtualTokens: 3 }), { at: 'embed_tokens', name: 'prompt' });
      model.active = ['prompt', 'default'];
      await expect(logits(model)).rejects.toThrow(/cannot run behind a prompt/);
      const scaling = { rope_type: 'longrope', short_factor: [1, 1], long_factor: [2, 2], original_max_position_embeddings: 32 };
      await onTiny(
        async (other) =>
          expect((await rejection(adapt(other, qst(options), { at: '**' }))).message).toMatch(/divisor for each rotary frequency/),
        { rope_scaling: scaling },
      );
    }));
});
