import { expect, it } from 'vitest';
import {
  add,
  ConfigError,
  denseParameter,
  dispose,
  fill,
  memory,
  mul,
  tensor2d,
  withAdapters,
  type Parameter,
  type Tensor2D,
} from '@niwaki/tensor';
import { createKeyValueCache, forward, generate, type Adapter, type AdapterSet, type GeneratedToken, type Model } from '@niwaki/nn';
import { tinyLlama } from '../../testing/src/index.ts';

const rows = [
  [1, 2, 3, 4],
  [5, 6, 7, 8],
];

/** Counts beside the blocks how often they ran: +1 for each, times a factor of its own; the head adds the sum to its input. */
function counting(name: string, step: Parameter): AdapterSet {
  const stream = `count.${name}`;
  const through: Adapter['apply'] = (x, next) => next(x);
  const start: Adapter = {
    kind: 'counting',
    point: 'embedding',
    parameters: {},
    apply: through,
    stages: () => [
      {
        path: `start.${name}`,
        reads: ['h'],
        writes: [stream],
        parameters: () => [],
        run: ({ h }) => ({ [stream]: fill([h!.shape[0]!, 1], 0) }),
      },
    ],
  };
  const block: Adapter = {
    kind: 'counting',
    point: 'block',
    parameters: { step },
    apply: through,
    stages: () => [
      {
        path: `count.${name}`,
        reads: [stream],
        writes: [stream],
        parameters: () => [step],
        run: (carry, call) => ({ [stream]: add(carry[stream]!, call.value(step)) }),
      },
    ],
  };
  const head: Adapter = {
    kind: 'counting',
    point: 'head',
    parameters: {},
    apply: (x, next, call) => next(mul(x, add(call.streams![stream]!, 1)) as Tensor2D),
    reads: [stream],
  };
  return {
    name,
    method: { kind: 'counting', options: {} },
    sites: new Map([
      ['model.embed_tokens', start],
      ['model.layers.0', block],
      ['model.layers.1', { ...block, parameters: {}, stages: block.stages! }],
      ['lm_head', head],
    ]),
    replaced: new Map(),
    base: '',
  };
}

const stepOf = (name: string, value: number): Parameter => denseParameter(`step.${name}`, tensor2d([[value]]), { role: 'magnitude' });

async function valuesOf(model: Model, ...views: Parameters<typeof withAdapters>[0][]): Promise<Float32Array> {
  const tokenIds = tensor2d(rows.flat(), [2, 4], 'int32');
  const [view] = views;
  const logits = forward(model, { tokenIds }, view === undefined ? {} : { view: withAdapters(view) });
  const values = (await logits.data()) as Float32Array;
  dispose([tokenIds, logits]);
  return values;
}

const times = (values: Float32Array, factor: number): Float32Array => values.map((value) => value * factor);
const apart = (a: Float32Array, b: Float32Array): number => Math.max(...a.map((value, i) => Math.abs(value - b[i]!)));

const onTiny = async (test: (model: Model) => Promise<void>): Promise<void> => {
  const before = memory().numTensors;
  const model = await tinyLlama();
  await test(model);
  model.dispose();
  expect(memory().numTensors).toBe(before);
};

it('runs the stages of an adapter behind those of its sites, each set on its own stream, while a call reads it', () =>
  onTiny(async (model) => {
    const base = await valuesOf(model);
    const stages = model.stages().map(({ path }) => path);
    model.attach(counting('a', stepOf('a', 1)));
    expect(model.stages().map(({ path }) => path)).toEqual([
      'model.embed_tokens',
      'start.a',
      'model.layers.0',
      'count.a',
      'model.layers.1',
      'count.a',
      'lm_head',
    ]);
    // Two blocks: 1 + 2.
    expect(apart(await valuesOf(model), times(base, 3))).toBeLessThan(1e-5);
    expect(await valuesOf(model, 'none')).toEqual(base);
    model.attach(counting('b', stepOf('b', 2)));
    expect(apart(await valuesOf(model), times(base, 3))).toBeLessThan(1e-5);
    expect(apart(await valuesOf(model, ['b']), times(base, 5))).toBeLessThan(1e-5);
    model.active = ['a', 'b'];
    expect(apart(await valuesOf(model), times(base, 15))).toBeLessThan(1e-4);
    for (const name of ['a', 'b'])
      for (const { parameters } of model.detach(name).sites.values()) for (const own of Object.values(parameters)) own.dispose();
    expect(model.stages().map(({ path }) => path)).toEqual(stages);
    expect(model.stages().at(-1)!.reads).toEqual(['h']);
    expect(await valuesOf(model)).toEqual(base);
  }));

it('reads what an adapter stores in the stages that it brings, and not at the site', () =>
  onTiny(async (model) => {
    const step = stepOf('a', 1);
    model.attach(counting('a', step));
    const readers = model.stages().filter((stage) => stage.parameters().includes(step));
    expect(readers.map(({ path }) => path)).toEqual(['count.a', 'count.a']);
    expect(model.parameters().get('step.a')).toBe(step);
    expect(model.stages().flatMap(({ sites }) => sites)).toEqual(model.sites(() => true));
  }));

it('generates with the streams that the head reads, with a cache and without', () =>
  onTiny(async (model) => {
    model.attach(counting('a', stepOf('a', 1)));
    const ids: GeneratedToken[][] = [];
    for (const cached of [true, false]) {
      const text: GeneratedToken[] = [];
      for await (const token of generate(model, [1, 2], {
        maxNewTokens: 3,
        stopIds: [],
        cache: cached,
        logProbabilities: true,
      }))
        text.push(token);
      ids.push(text);
    }
    expect(ids[0]!.map(({ id }) => id)).toEqual(ids[1]!.map(({ id }) => id));
    for (const [t, { logProbability }] of ids[0]!.entries())
      expect(Math.abs(logProbability! - ids[1]![t]!.logProbability!)).toBeLessThan(1e-4);
    const cache = createKeyValueCache();
    const tokenIds = tensor2d([[1, 2]], [1, 2], 'int32');
    forward(model, { tokenIds }, { session: { cache } }).dispose();
    expect(cache.length).toBe(2);
    dispose(tokenIds);
    cache.dispose();
  }));

it('refuses stages behind the head, and is as it was', () =>
  onTiny(async (model) => {
    const late: Adapter = {
      kind: 'late',
      point: 'head',
      parameters: {},
      apply: (x, next) => next(x),
      stages: () => [{ path: 'late', reads: ['logits'], writes: ['late'], parameters: () => [], run: () => ({}) }],
    };
    const set: AdapterSet = {
      name: 'late',
      method: { kind: 'late', options: {} },
      sites: new Map([['lm_head', late]]),
      replaced: new Map(),
      base: '',
    };
    expect(() => model.attach(set)).toThrow(ConfigError);
    expect(model.adapters.size).toBe(0);
    expect(model.stages()).toHaveLength(4);
  }));
