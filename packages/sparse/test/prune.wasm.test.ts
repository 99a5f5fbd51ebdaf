import { describe, expect, it } from 'vitest';
import { AbortError, ConfigError, denseParameter, memory, NumericError, ShapeError, StateError, tensor2d } from '@niwaki/tensor';
import { initializeModel, tokenBatch, type Model, type TokenBatch } from '@niwaki/nn';
import { disposeBatch, type Method } from '@niwaki/engine';
import { denseWeight, encodeGgufBlocks, ggufBlock, maskOf, rowsOf, weightBytes } from '@niwaki/weights';
import { dsnot, magnitude, prune, sparsegpt, wanda, type PruneMethodOptions } from '../src/index.ts';
import { logits, train } from '../../testing/src/contract-model.ts';
import { calibrationConfig as config, calibrationSequences, relativeDistance as distance } from '../../testing/src/calibration-model.ts';

const build = (trainable = false): Promise<Model> => initializeModel(config, { seed: 1, trainable });
const sequences = calibrationSequences(4, 24);
const batchesOf = (): TokenBatch[] => sequences.map((row) => tokenBatch([row], { vocabularySize: 40 }));

const logitsOf = (model: Model): Promise<Float32Array> => logits(model, undefined, sequences);

async function matrix(model: Model, path: string): Promise<Float32Array> {
  const dense = model.sites(path)[0]!.weight!.dense();
  const values = (await dense.data()) as Float32Array;
  dense.dispose();
  return values;
}

async function apply(model: Model, method: Method, options: Parameters<typeof prune>[2] = {}): ReturnType<typeof prune> {
  const batches = method.kind === 'magnitude' ? [] : batchesOf();
  try {
    return await prune(model, method, { ...options, ...(batches.length > 0 && { calibrate: { batches } }) });
  } finally {
    batches.forEach(disposeBatch);
  }
}

/** Relative distance of the logits after pruning, of a fresh model each. */
async function errorOf(method: Method): Promise<number> {
  const before = memory().numTensors;
  const model = await build();
  const dense = await logitsOf(model);
  await apply(model, method);
  const error = distance(await logitsOf(model), dense);
  model.dispose();
  expect(memory().numTensors).toBe(before);
  return error;
}

const methods: [string, (options: PruneMethodOptions) => Method][] = [
  ['magnitude', magnitude],
  ['wanda', wanda],
  ['sparsegpt', sparsegpt],
  ['dsnot', ({ store, ...amount }) => dsnot({ initial: wanda(amount), refine: 'all', ...(store && { store }) })],
];

describe.each(methods)('pruning (%s)', (kind, make) => {
  it('takes the part asked for, in bytes of the formula, and leaves no tensor behind', async () => {
    const before = memory().numTensors;
    const model = await build();
    const report = await apply(model, make({ sparsity: 0.5 }));
    expect(report.sites).toHaveLength(14);
    expect(report.sparsity).toBe(0.5);
    const entries = model.sites([...report.sites]).reduce((sum, { weight }) => sum + weight!.shape[0] * weight!.shape[1], 0);
    expect(report.bytes).toBe(4 * entries + entries / 8);
    model.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it.each([
    [2, 4, 17],
    [1, 4, 8.5],
    [2, 8, 8.75],
  ])('keeps %i of every %i and stores no more than them', async (n, m, bits) => {
    const model = await build();
    const masked = await build();
    const report = await apply(model, make({ n, m, store: 'n-of-m' }));
    await apply(masked, make({ n, m }));
    const entries = model.sites([...report.sites]).reduce((sum, { weight }) => sum + weight!.shape[0] * weight!.shape[1], 0);
    expect((8 * report.bytes) / entries).toBe(bits);
    expect(report.sparsity).toBeCloseTo(1 - n / m, 6);
    const path = report.sites.at(-1)!;
    const values = await matrix(model, path);
    for (let from = 0; from < values.length; from += m) {
      expect(values.subarray(from, from + m).filter((value) => value !== 0).length).toBeLessThanOrEqual(n);
    }
    expect(distance(await logitsOf(model), await logitsOf(masked))).toBeLessThan(1e-4);
    model.dispose();
    masked.dispose();
  });

  it('stores rows of entries where it is told to', async () => {
    const model = await build();
    const report = await apply(model, make({ sparsity: 0.75, store: 'csr' }));
    const weight = model.sites('model.layers.0.mlp.down_proj')[0]!.weight!;
    expect(weight.kind).toBe('csr');
    expect(weightBytes(weight)).toBe(6 * 32 * 16 + 4 * 33);
    expect(report.sparsity).toBe(0.75);
    model.dispose();
  });

  it('trains with its zeros in place, and the loss falls', async () => {
    const before = memory().numTensors;
    const model = await build(true);
    const { sites } = await apply(model, make({ sparsity: 0.5 }));
    const masks = await Promise.all(sites.map((path) => maskOf(model.sites(path)[0]!.weight!)));
    const first = await matrix(model, sites[0]!);
    const { losses } = await train(model, { steps: 8 });
    expect(losses.at(-1)!).toBeLessThan(losses[0]! - 0.1);
    for (const [i, path] of sites.entries()) {
      const values = await matrix(model, path);
      expect(values.every((value, e) => masks[i]![e] === 1 || value === 0)).toBe(true);
    }
    expect(await matrix(model, sites[0]!)).not.toEqual(first);
    model.dispose();
    expect(memory().numTensors).toBe(before);
  });

  it('leaves the model as it was when a site fails or the user stops', async () => {
    const model = await build();
    const dense = await logitsOf(model);
    const bad = model.sites('model.layers.1.mlp.down_proj')[0]!.weight!.matrix!;
    const good = bad.read().clone();
    const before = memory().numTensors;
    bad.write(
      tensor2d(
        Float32Array.from({ length: 32 * 64 }, (_, i) => (i === 70 ? Number.NaN : 1)),
        [32, 64],
      ),
    );
    const failed = await apply(model, make({ sparsity: 0.5 })).catch((error: unknown) => error);
    expect(failed).toBeInstanceOf(NumericError);
    expect(String(failed)).toMatch(kind === 'magnitude' ? /layers\.1\.mlp\.down_proj/ : /layers\.1|not positive/);
    bad.write(good);
    expect(memory().numTensors).toBe(before - 1);
    expect(await logitsOf(model)).toEqual(dense);

    const controller = new AbortController();
    const stopped = await apply(model, make({ sparsity: 0.5 }), {
      signal: controller.signal,
      onProgress: ({ done }) => (done === 3 ? controller.abort() : undefined),
    }).catch((error: unknown) => error);
    expect(stopped).toBeInstanceOf(AbortError);
    expect(await logitsOf(model)).toEqual(dense);
    expect(memory().numTensors).toBe(before - 1);
    model.dispose();
  });

  it('keeps a model in half precision in half precision', async () => {
    const model = await build();
    for (const site of model.sites('all-linear')) {
      const shape = [site.weight!.shape[0], site.weight!.shape[1]] as const;
      model.replace(site.path, ggufBlock(site.path, shape, 'F16', await encodeGgufBlocks(site.path, shape, rowsOf(site.weight!), 'F16')));
    }
    const before = await matrix(model, 'model.layers.0.mlp.up_proj');
    const { bytes, sites, sparsity } = await apply(model, make({ sparsity: 0.5 }));
    const entries = model.sites([...sites]).reduce((sum, { weight }) => sum + weight!.shape[0] * weight!.shape[1], 0);
    expect(bytes).toBe(2 * entries + entries / 8);
    expect(sparsity).toBeGreaterThanOrEqual(0.5);
    const after = await matrix(model, 'model.layers.0.mlp.up_proj');
    expect(kind === 'sparsegpt' || after.every((value, e) => value === 0 || value === before[e])).toBe(true);
    // Pruned once more: one mask, of less.
    const again = await apply(model, magnitude({ sparsity: 0.7 }));
    expect(again.bytes).toBe(bytes);
    expect(again.sparsity).toBeGreaterThan(0.69);
    const packed = await apply(model, magnitude({ n: 1, m: 4, store: 'n-of-m' }));
    expect((8 * packed.bytes) / entries).toBe(4.5);
    model.dispose();
  });

  it('refuses groups that do not divide the rows, before anything is changed', async () => {
    const model = await initializeModel({ ...config, hidden_size: 24, intermediate_size: 36 }, { seed: 1, trainable: false });
    const failed = await apply(model, make({ n: 2, m: 8 })).catch((error: unknown) => error);
    expect(failed).toBeInstanceOf(ShapeError);
    expect(String(failed)).toMatch(/mlp\.down_proj' \[24, 36\]: rows of 36 entries are not groups of 8/);
    expect(model.sites('all-linear').every(({ weight }) => weight!.kind === 'dense')).toBe(true);
    model.dispose();
  });
});

describe('what pruning costs', () => {
  it('less where the inputs are looked at, and least where the rest makes up for it', async () => {
    const errors = {
      magnitude: await errorOf(magnitude({ sparsity: 0.5 })),
      wanda: await errorOf(wanda({ sparsity: 0.5 })),
      sparsegpt: await errorOf(sparsegpt({ sparsity: 0.5 })),
    };
    expect(errors.sparsegpt).toBeLessThan(errors.wanda);
    expect(errors.sparsegpt).toBeLessThan(errors.magnitude);
  });
});

describe('magnitude', () => {
  it.each(['row', 'layer', 'global'] as const)('takes the part asked for where entries compete: %s', async (scope) => {
    const model = await build();
    const dense = await Promise.all(model.sites('all-linear').map(({ path }) => matrix(model, path)));
    const { sites, sparsity } = await prune(model, magnitude({ sparsity: 0.3, scope }));
    const parts = await Promise.all(sites.map(async (path) => (await maskOf(model.sites(path)[0]!.weight!))!));
    const total = dense.reduce((sum, { length }) => sum + length, 0);
    const gone = parts.map((mask) => mask.filter((keep) => keep === 0).length);
    const expected = {
      row: sites.reduce((sum, path) => {
        const [out, width] = model.sites(path)[0]!.weight!.shape;
        return sum + out * Math.floor(0.3 * width);
      }, 0),
      layer: dense.reduce((sum, { length }) => sum + Math.floor(0.3 * length), 0),
      global: Math.floor(0.3 * total),
    }[scope];
    expect(gone.reduce((a, b) => a + b, 0)).toBe(expected);
    expect(sparsity).toBeCloseTo(expected / total, 6);
    model.dispose();
  });

  it('among all matrices leaves nothing smaller than what it takes', async () => {
    const model = await build();
    const dense = await Promise.all(model.sites('all-linear').map(({ path }) => matrix(model, path)));
    const { sites } = await prune(model, magnitude({ sparsity: 0.3, scope: 'global' }));
    const masks = await Promise.all(sites.map(async (path) => (await maskOf(model.sites(path)[0]!.weight!))!));
    const sizes = (keep: number): number[] =>
      dense.flatMap((values, i) => [...values].filter((_, e) => masks[i]![e] === keep).map(Math.abs));
    expect(sizes(0).reduce((a, b) => Math.max(a, b))).toBeLessThanOrEqual(sizes(1).reduce((a, b) => Math.min(a, b)));
    model.dispose();
  });

  it('prunes what is stored in codes into a mask over new codes', async () => {
    const model = await build();
    const shape = [64, 32] as const;
    const path = 'model.layers.0.mlp.up_proj';
    model.replace(path, ggufBlock(path, shape, 'Q8_0', await encodeGgufBlocks(path, shape, rowsOf(model.sites(path)[0]!.weight!), 'Q8_0')));
    const { sparsity } = await prune(model, magnitude({ sparsity: 0.5 }), { at: path });
    expect(sparsity).toBeGreaterThanOrEqual(0.5);
    const weight = model.sites(path)[0]!.weight!;
    expect(weightBytes(weight)).toBe(64 * 34 + (64 * 32) / 8);
    await expect(prune(model, magnitude({ n: 2, m: 4, store: 'n-of-m' }), { at: path })).rejects.toThrow(/Prune before quantizing|codes/);
    model.dispose();
  });

  it('reads no data, and the others need some', async () => {
    const model = await build();
    await expect(prune(model, wanda())).rejects.toThrow(/needs calibration batches/);
    const batches = batchesOf();
    await expect(prune(model, magnitude(), { calibrate: { batches } })).rejects.toThrow(ConfigError);
    await expect(prune(model, wanda(), { at: 'model.embed_tokens', calibrate: { batches } })).rejects.toThrow(
      /'model.embed_tokens' \(dense\) does not give \(inputs\)/,
    );
    const { sparsity } = await prune(model, magnitude({ sparsity: 0.25 }), { at: 'model.embed_tokens' });
    expect(sparsity).toBe(0.25);
    expect((await logitsOf(model)).every(Number.isFinite)).toBe(true);
    batches.forEach(disposeBatch);
    model.dispose();
  });
});

describe('a pruned model that was saved as numbers', () => {
  it.each([
    [{ sparsity: 0.6 }, { sparsity: 0.6, scope: 'row' }],
    [
      { n: 2, m: 8 },
      { n: 2, m: 8 },
    ],
  ] as const)('gets its masks back from its zeros: %o', async (amount, again) => {
    const model = await build();
    const { sites } = await apply(model, wanda(amount));
    for (const path of sites) {
      const { weight } = model.sites(path)[0]!;
      const mask = await maskOf(weight!);
      model.replace(path, denseWeight(denseParameter(`${path}.weight`, weight!.dense(), { role: 'matrix' })));
      await prune(model, magnitude(again), { at: path });
      expect(await maskOf(model.sites(path)[0]!.weight!)).toEqual(mask);
    }
    model.dispose();
  });
});

describe('DSnoT', () => {
  it.each(['magnitude', 'wanda', 'sparsegpt'] as const)(
    'starts from the choice of %s, changes attention alone and no value',
    async (name) => {
      const initial = { magnitude, wanda, sparsegpt }[name]({ sparsity: 0.6 });
      const [model, start] = [await build(), await build()];
      const dense = new Map(
        await Promise.all(model.sites('all-linear').map(async ({ path }) => [path, await matrix(model, path)] as const)),
      );
      const { sites } = await apply(model, dsnot({ initial, threshold: 0.01 }));
      await apply(start, dsnot({ initial, threshold: 1e9 }));
      const moved = { attention: 0, mlp: 0 };
      for (const path of sites) {
        const [mask, first] = [await maskOf(model.sites(path)[0]!.weight!), await maskOf(start.sites(path)[0]!.weight!)];
        const width = model.sites(path)[0]!.weight!.shape[1];
        for (let from = 0; from < mask!.length; from += width) {
          expect(mask!.subarray(from, from + width).filter((keep) => keep === 0)).toHaveLength(Math.floor(0.6 * width));
        }
        const values = await matrix(model, path);
        expect(values.every((value, e) => value === (mask![e] === 1 ? dense.get(path)![e] : 0))).toBe(true);
        // Later blocks see other inputs: only the first has the same choice to start from.
        if (!path.startsWith('model.layers.0')) continue;
        moved[path.includes('mlp') ? 'mlp' : 'attention'] += mask!.filter((keep, e) => keep !== first![e]).length;
      }
      expect(moved.attention).toBeGreaterThan(0);
      expect(moved.mlp).toBe(0);
      model.dispose();
      start.dispose();
    },
  );

  it('refuses weights whose entries are lost, and a model without what it shall refine', async () => {
    const model = await build();
    await prune(model, magnitude({ sparsity: 0.8 }));
    await expect(apply(model, dsnot())).rejects.toMatchObject({ details: { token: 'zeros', rule: 'forbids' } });
    for (const { path, weight } of model.sites('all-linear')) {
      model.replace(path, denseWeight(denseParameter(`${path}.weight`, weight!.dense(), { role: 'matrix' })));
    }
    const lost = await apply(model, dsnot({ initial: wanda({ sparsity: 0.5 }) })).catch((error: unknown) => error);
    expect(lost).toBeInstanceOf(StateError);
    expect(String(lost)).toMatch(/its entries are lost already/);
    await expect(apply(model, dsnot(), { at: '**.mlp.*' })).rejects.toThrow(/no selected site is one of those to refine/);
    model.dispose();
  });
});
