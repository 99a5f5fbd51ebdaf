import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { AbortError, ConfigError, denseParameter, matMul, memory, mul, NotFoundError, tidy, type Tensor2D } from '@niwaki/tensor';
import { denseWeight, type Weight } from '@niwaki/weights';
import { forward, tokenBatch, type Model, type Site, type TokenBatch } from '@niwaki/nn';
import {
  applyMethod,
  collectInputs,
  defineMethod,
  disposeBatch,
  inputGram,
  type BlockProgress,
  type Collector,
  type Method,
  type Window,
} from '@niwaki/engine';
import { tinyLlama } from '../../testing/src/index.ts';

const ids = [
  [1, 2, 3, 4, 5, 6],
  [9, 8, 7, 6, 5, 4],
];
const batchOf = (rows: readonly (readonly number[])[]): TokenBatch => tokenBatch(rows, { vocabularySize: 32 });
let batches: TokenBatch[];
let model: Model;
let tensors: number;

beforeAll(() => {
  batches = ids.map((row) => batchOf([row]));
});
afterAll(() => batches.forEach(disposeBatch));
beforeEach(async () => {
  tensors = memory().numTensors;
  model = await tinyLlama();
});

/** The test is over: nothing may be left of it. */
function end(): void {
  model.dispose();
  expect(memory().numTensors).toBe(tensors);
}

/** Another matrix in place of the stored one: `factor` times it. */
async function times(site: Site, factor: number): Promise<Weight> {
  const matrix = tidy(() => mul(site.weight!.dense(), factor)) as Tensor2D;
  return denseWeight(denseParameter(`${site.path}.weight`, matrix, { role: 'matrix' }));
}

function scaling(factor: number, walk: Method['walk'], look?: (window: Window) => Promise<void>): Method {
  return defineMethod({
    kind: 'scaling',
    options: { factor },
    traits: {},
    makes: 'weight',
    ...(walk && { walk }),
    visit: async (window) => {
      await look?.(window);
      for (const site of window.groups.flat()) window.replace(site, { weight: await times(site, factor) });
    },
    make: async () => ({}),
  });
}

const numbers = async (t: Tensor2D): Promise<number[]> => [...(await t.data())];
const expectClose = (given: readonly number[], expected: readonly number[], tolerance = 1e-5): void => {
  expect(given).toHaveLength(expected.length);
  const scale = Math.max(...expected.map(Math.abs));
  for (const [i, value] of given.entries()) expect(Math.abs(value - expected[i]!)).toBeLessThan(tolerance * scale);
};

/** XᵀX / rows of what a site's matrix is applied to in whole forwards of the model. */
async function gramOf(of: Model, path: string, rows: readonly (readonly number[])[]): Promise<number[]> {
  const site = of.sites(path)[0]!;
  const stored = site.weight!;
  const width = stored.shape[1];
  const total = Array.from({ length: width * width }, () => 0);
  let count = 0;
  site.weight = {
    ...stored,
    apply: (x, call) => {
      const product = tidy(() => matMul(x, x, true, false)).dataSync();
      product.forEach((value, i) => (total[i]! += value));
      count += x.shape[0];
      return stored.apply(x, call);
    },
  };
  for (const row of rows) {
    const batch = batchOf([row]);
    forward(of, batch).dispose();
    disposeBatch(batch);
  }
  site.weight = stored;
  return total.map((value) => value / count);
}

const up = 'model.layers.1.mlp.up_proj';

describe('statistics of inputs', () => {
  it('are those of whole forwards, taken once for all sites that read one tensor', async () => {
    const inits: string[] = [];
    let updates = 0;
    const gram = inputGram();
    const counting: Collector<Tensor2D> = {
      ...gram,
      init: (site) => {
        inits.push(site.path);
        return gram.init(site);
      },
      update: (...given) => {
        updates++;
        return gram.update(...given);
      },
    };
    const expected = await gramOf(model, up, ids);
    let found: number[] = [];
    await applyMethod(
      model,
      scaling(1, {}, async (window) => {
        const statistics = await window.collect(window.groups.flat(), { gram: counting });
        const of = (path: string): Tensor2D => statistics.get(model.sites(path)[0]!)!.gram;
        const layer = window.stages[0]!.path;
        expect(of(`${layer}.self_attn.q_proj`)).toBe(of(`${layer}.self_attn.v_proj`));
        if (layer === 'model.layers.1') found = await numbers(of(up));
      }),
      { at: 'all-linear', calibrate: { batches } },
    );
    expectClose(found, expected);
    // q k v · o · gate up · down, in two blocks, for two batches.
    expect(inits).toHaveLength(8);
    expect(updates).toBe(16);
    end();
  });

  it('leave padding out', async () => {
    const short = [ids[0]!, ids[1]!.slice(0, 3)];
    const expected = await gramOf(model, up, short);
    const padded = batchOf(short);
    let found: number[] = [];
    const method = scaling(1, {}, async (window) => {
      found = await numbers((await window.collect(window.groups.flat(), { gram: inputGram() })).values().next().value!.gram);
    });
    await applyMethod(model, method, { at: up, calibrate: { batches: [padded] } });
    disposeBatch(padded);
    expectClose(found, expected);
    end();
  });

  it('of all blocks at once leave the model as it is, and end where the last site is', async () => {
    const short = [ids[0]!, ids[1]!.slice(0, 3)];
    const down = 'model.layers.0.mlp.down_proj';
    const expected = [await gramOf(model, down, short), await gramOf(model, up, short)];
    const padded = batchOf(short);
    const head = model.sites('lm_head')[0]!;
    const { weight } = head;
    head.weight = {
      ...weight!,
      apply: () => {
        throw new Error('the head has nothing to do with it');
      },
    };
    const sites = [down, up].map((path) => model.sites(path)[0]!);
    const weights = sites.map((site) => site.weight);
    const { of, release } = await collectInputs(model, sites, { gram: inputGram() }, { batches: [padded], kind: 'a test' });
    for (const [i, site] of sites.entries()) expectClose(await numbers(of.get(site)!.gram), expected[i]!);
    expect(sites.map((site) => site.weight)).toEqual(weights);
    release();
    head.weight = weight!;
    disposeBatch(padded);
    end();
  });

  it.each(['current', 'float', 'both'] as const)('of later blocks follow the walk: %s', async (advance) => {
    const float = await gramOf(model, up, ids);
    const first = (path: string): boolean => path.includes('layers.0.');
    await applyMethod(model, scaling(0.5, {}), { at: ({ path }) => first(path), calibrate: { batches } });
    const current = await gramOf(model, up, ids);
    await applyMethod(model, scaling(2, {}), { at: ({ path }) => first(path), calibrate: { batches } });

    const found: Record<string, number[]> = {};
    const method = scaling(0.5, { advance }, async (window) => {
      const site = window.groups.flat().find(({ path }) => path === up);
      if (site === undefined) return;
      // Before anything in this block is replaced.
      found['inputs'] = await numbers((await window.collect([site], { gram: inputGram() })).get(site)!.gram);
      if (advance !== 'both') return;
      found['float'] = await numbers((await window.collect([site], { gram: inputGram() }, { of: 'float' })).get(site)!.gram);
    });
    await applyMethod(model, method, { at: [up, 'model.layers.0.**'], calibrate: { batches } });
    expectClose(found['inputs']!, advance === 'float' ? float : current);
    if (advance === 'both') expectClose(found['float']!, float);
    expect(Math.max(...float.map((value, i) => Math.abs(value - current[i]!)))).toBeGreaterThan(1e-3 * Math.max(...float));
    end();
  });

  it('see what was replaced before in the same block', async () => {
    const down = 'model.layers.0.mlp.down_proj';
    const float = await gramOf(model, down, ids);
    let found: number[] = [];
    const method = defineMethod({
      ...scaling(1, {}),
      visit: async (window) => {
        for (const site of window.groups.flat()) {
          if (site.path === down) found = await numbers((await window.collect([site], { gram: inputGram() })).get(site)!.gram);
          window.replace(site, { weight: await times(site, site.path.endsWith('up_proj') ? 3 : 1) });
        }
      },
    });
    await applyMethod(model, method, { at: 'model.layers.0.**', calibrate: { batches } });
    // gate · up: three times the input, nine times the moments.
    expectClose(
      found,
      float.map((value) => 9 * value),
    );
    end();
  });

  it('reach make by name', async () => {
    const widths: number[] = [];
    const method = defineMethod({
      kind: 'simple',
      options: {},
      traits: {},
      makes: 'weight',
      collect: { gram: inputGram() },
      make: async (site, _, statistics) => {
        widths.push((statistics!['gram'] as Tensor2D).shape[0]);
        return { weight: await times(site, 1) };
      },
    });
    await applyMethod(model, method, { at: ['layers.1.**.down_proj', 'layers.1.**.q_proj'], calibrate: { batches } });
    expect(widths).toEqual([16, 32]);
    end();
  });
});

describe('windows', () => {
  it('of two blocks replay both, beside what the float model gives', async () => {
    const seen: [string[], number][] = [];
    const method = scaling(1, { width: 2, advance: 'both' }, async (window) => {
      for (const site of window.groups.flat().slice(0, 3)) window.replace(site, { weight: await times(site, 0.5) });
      await window.replay(async ({ output, target }) => {
        const [given, float] = [await numbers(output['h'] as Tensor2D), await numbers(target!['h'] as Tensor2D)];
        seen.push([window.stages.map(({ path }) => path), Math.max(...given.map((value, i) => Math.abs(value - float[i]!)))]);
      });
    });
    await applyMethod(model, method, { at: 'all-linear', calibrate: { batches } });
    expect(seen).toHaveLength(2);
    expect(seen[0]![0]).toEqual(['model.layers.0', 'model.layers.1']);
    for (const [, distance] of seen) expect(distance).toBeGreaterThan(1e-4);
    end();
  });

  it('that overlap visit a block twice', async () => {
    const visited: string[][] = [];
    const method = scaling(0.5, { width: 2, stride: 1 }, async (window) => {
      visited.push(window.stages.map(({ path }) => path));
    });
    const at = ['model.layers.0.mlp.up_proj', up, 'lm_head'];
    const { made } = await applyMethod(model, method, { at, calibrate: { batches } });
    expect(visited).toEqual([
      ['model.layers.0', 'model.layers.1'],
      ['model.layers.1', 'lm_head'],
    ]);
    expect([...made.keys()]).toEqual(['model.layers.0.mlp.up_proj', up, 'lm_head']);
    end();
  });

  it.each([
    [6, { width: 2, stride: 1 }, ['0-1', '1-2', '2-3', '3-4', '4-5']],
    [7, { width: 4, stride: 2 }, ['0-3', '2-5', '4-6']],
    [5, { width: 1 }, ['0-0', '1-1', '2-2', '3-3', '4-4']],
    [32, { width: 2, stride: 1 }, 31],
    [32, { width: 4, stride: 2 }, 15],
  ] as const)('of %i blocks end with the last one: %j', async (blocks, walk, expected) => {
    const deep = await tinyLlama({
      num_hidden_layers: blocks,
      hidden_size: 4,
      num_attention_heads: 1,
      num_key_value_heads: 1,
      intermediate_size: 4,
    });
    const visited: string[] = [];
    const method = scaling(1, walk, async ({ stages }) => {
      const numbers = stages.map(({ path }) => path.split('.').at(-1));
      visited.push(`${numbers[0]}-${numbers.at(-1)}`);
    });
    const short = [batchOf([[1, 2]])];
    await applyMethod(deep, method, { at: '**.up_proj', calibrate: { batches: short } });
    expect(typeof expected === 'number' ? visited.length : visited).toEqual(expected);
    expect(visited.at(-1)).toMatch(new RegExp(`-${blocks - 1}$`));
    short.forEach(disposeBatch);
    deep.dispose();
    end();
  });

  it('tell their progress and the memory they hold', async () => {
    const blocks: BlockProgress[] = [];
    await applyMethod(model, scaling(1, {}), { at: 'all-linear', calibrate: { batches, onBlock: (progress) => blocks.push(progress) } });
    expect(blocks.map(({ done, total, path, next }) => [done, total, path, next])).toEqual([
      [1, 2, 'model.layers.0', 'model.layers.1'],
      [2, 2, 'model.layers.1', 'lm_head'],
    ]);
    // h of 16 and tables of 2 + 2 for 12 rows, bounds of 1 + 1, f32 and int32.
    expect(blocks[0]!.bytes).toBe(4 * 12 * (16 + 2 + 2 + 1 + 1));
    end();
  });
});

describe('a calibrated method', () => {
  it('that goes on at a block gives what one without a stop gives', async () => {
    const method = (): Method =>
      defineMethod({
        ...scaling(1, {}),
        visit: async (window) => {
          for (const site of window.groups.flat()) {
            const { gram } = (await window.collect([site], { gram: inputGram() })).get(site)!;
            const [first] = await gram.data();
            window.replace(site, { weight: await times(site, 1 / (1 + first!)) });
          }
        },
      });
    const at = 'all-linear';
    await applyMethod(model, method(), { at, calibrate: { batches } });
    const whole = await numbers(model.sites(up)[0]!.weight!.dense());
    const other = await tinyLlama();
    await applyMethod(other, method(), { at: 'model.layers.0.**', calibrate: { batches } });
    const { made } = await applyMethod(other, method(), { at, calibrate: { batches, from: 'model.layers.1' } });
    expect([...made.keys()].every((path) => path.startsWith('model.layers.1.'))).toBe(true);
    const dense = other.sites(up)[0]!.weight!.dense();
    expect(await numbers(dense)).toEqual(whole);
    other.dispose();
    model.dispose();
  });

  it('that fails leaves the model as it was, and no tensor', async () => {
    const before = model.sites('all-linear').map(({ weight }) => weight);
    const live = memory().numTensors;
    const method = scaling(0.5, { advance: 'both' }, async (window) => {
      await window.collect(window.groups.flat(), { gram: inputGram() });
      if (window.stages[0]!.path === 'model.layers.1') throw new Error('no more');
    });
    await expect(applyMethod(model, method, { at: 'all-linear', calibrate: { batches } })).rejects.toThrow('no more');
    expect(model.sites('all-linear').map(({ weight }) => weight)).toEqual(before);
    expect(memory().numTensors).toBe(live);
    end();
  });

  it('stops between batches when it is told to', async () => {
    const stop = new AbortController();
    const method = scaling(0.5, {}, async (window) => {
      stop.abort();
      await window.collect(window.groups.flat(), { gram: inputGram() });
    });
    const work = applyMethod(model, method, { at: 'all-linear', calibrate: { batches }, signal: stop.signal });
    await expect(work).rejects.toThrow(AbortError);
    end();
  });

  it('says what is wrong with its data', async () => {
    const at = 'all-linear';
    await expect(applyMethod(model, scaling(1, {}), { at })).rejects.toThrow(/needs calibration batches/);
    await expect(applyMethod(model, scaling(1, {}), { at, calibrate: { batches: [] } })).rejects.toThrow(/at least one batch/);
    await expect(applyMethod(model, scaling(1, {}), { at, calibrate: { batches, from: 'model.layers.9' } })).rejects.toThrow(NotFoundError);
    const float = scaling(1, { advance: 'float' });
    await expect(applyMethod(model, float, { at, calibrate: { batches, from: 'model.layers.1' } })).rejects.toThrow(/calibrate.reference/);
    await expect(applyMethod(model, scaling(1, { width: 0 }), { at, calibrate: { batches } })).rejects.toThrow(/width.*got 0/);
    await expect(applyMethod(model, scaling(1, { stride: 2 }), { at, calibrate: { batches } })).rejects.toThrow(/stride.*got 2/);
    const plain = defineMethod({ kind: 'plain', options: {}, traits: {}, makes: 'weight', make: async () => ({}) });
    await expect(applyMethod(model, plain, { at, calibrate: { batches } })).rejects.toThrow(ConfigError);
    end();
  });
});
