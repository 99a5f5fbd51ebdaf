import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import {
  AbortError,
  denseParameter,
  div,
  memory,
  mul,
  NumericError,
  square,
  sub,
  sum,
  tidy,
  type Scalar,
  type Tensor2D,
} from '@niwaki/tensor';
import { createCall, denseWeight, type Weight } from '@niwaki/weights';
import { tokenBatch, type Carry, type Model, type Site, type TokenBatch } from '@niwaki/nn';
import { adamw } from '@niwaki/optim';
import { applyMethod, defineMethod, disposeBatch, type Fit, type FitProgress, type Method, type Window } from '@niwaki/engine';
import { tinyLlama } from '../../testing/src/index.ts';

let batches: TokenBatch[];
let model: Model;
let tensors: number;

beforeAll(() => {
  batches = [
    [1, 2, 3, 4, 5, 6],
    [9, 8, 7, 6, 5, 4],
  ].map((row) => tokenBatch([row], { vocabularySize: 32 }));
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

const at = ['**.mlp.up_proj', '**.mlp.down_proj'];

/** A weight of its own tensor: `factor` times what the site stores. */
function times(site: Site, factor: number): Weight {
  const matrix = tidy(() => mul(site.weight!.dense(), factor)) as Tensor2D;
  return denseWeight(denseParameter(`${site.path}.weight`, matrix, { role: 'matrix' }));
}

const squares: Fit['loss'] = (output, target, rows) => {
  const { count } = rows(target['h'] as Tensor2D);
  return div(sum(square(sub(output['h']!, target['h']!))), count) as Scalar;
};

/** Lends halved matrices, fits them to the float outputs and puts them. */
function halving({
  walk,
  fit,
  look,
}: { walk?: Method['walk']; fit?: Partial<Fit>; look?: (window: Window) => Promise<void> } = {}): Method {
  return defineMethod({
    kind: 'halving',
    options: {},
    traits: {},
    makes: 'weight',
    walk: { width: 2, stride: 1, advance: 'both', ...walk },
    visit: async (window) => {
      await look?.(window);
      const sites = window.groups.flat();
      for (const site of sites) if (window.lent(site) === undefined) window.lend(site, times(site, 0.5));
      const train = sites.map((site) => window.lent(site)!.matrix!);
      await window.fit({ train, optimizer: adamw({ learningRate: 0.02, weightDecay: 0 }), epochs: 20, loss: squares, ...fit });
      for (const site of window.leaving) window.replace(site, { weight: times(site, 1) });
    },
    make: async () => ({}),
  });
}

describe('fitting a window', () => {
  it('brings its outputs near to the float ones, and leaves what it made', async () => {
    const losses: FitProgress[] = [];
    await applyMethod(model, halving(), { at, calibrate: { batches, onFit: (progress) => losses.push(progress) } });
    expect(losses).toHaveLength(40);
    expect(losses[0]!.window).toEqual(['model.layers.0', 'model.layers.1']);
    expect(losses.at(-1)!).toMatchObject({ done: 40, total: 40 });
    expect(losses.at(-1)!.loss).toBeLessThan(0.02 * losses[0]!.loss);
    end();
  });

  it('goes on with what was lent in the window before, towards what the float model gives', async () => {
    const three = await tinyLlama({ num_hidden_layers: 3 });
    const call = createCall({ batch: batches[1]! });
    const float = tidy(() => {
      let carry: Carry = {};
      for (const stage of three.stages().slice(0, 4)) carry = { ...carry, ...stage.run(carry, call) };
      return carry['h']!.dataSync();
    });
    const seen: { blocks: string[]; lent: boolean[]; leaving: string[]; target: number[] }[] = [];
    const look = async (window: Window): Promise<void> => {
      const sites = window.groups.flat();
      const target: number[] = [];
      await window.replay(async ({ target: given, index }) => void (index === 1 && target.push(...(await given!['h']!.data()))));
      seen.push({
        blocks: window.stages.map(({ path }) => path),
        lent: sites.map((site) => window.lent(site) !== undefined),
        leaving: [...window.leaving].map(({ path }) => path),
        target,
      });
    };
    await applyMethod(three, halving({ look, fit: { epochs: 1 } }), { at, calibrate: { batches } });
    const up = (layer: number): string[] => ['up_proj', 'down_proj'].map((name) => `model.layers.${layer}.mlp.${name}`);
    expect(seen.map(({ blocks, lent, leaving }) => ({ blocks, lent, leaving }))).toEqual([
      { blocks: ['model.layers.0', 'model.layers.1'], lent: [false, false, false, false], leaving: up(0) },
      { blocks: ['model.layers.1', 'model.layers.2'], lent: [true, true, false, false], leaving: [...up(1), ...up(2)] },
    ]);
    expect(seen[1]!.target).toEqual([...float]);
    three.dispose();
    end();
  });

  it('adds penalties of parameters alone', async () => {
    const losses: number[] = [];
    const sizes: number[] = [];
    const fit: Partial<Fit> = {
      loss: (output) => mul(sum(output['h']!), 0) as Scalar,
      penalties: (progress) => {
        sizes.push(progress);
        return model.sites(at).map((site) => {
          const matrix = site.weight!.matrix!;
          return { parameters: [matrix], value: (call) => sum(square(call.value(matrix))) as Scalar };
        });
      },
    };
    const norms = tidy(() => model.sites(at).map((site) => sum(square(mul(site.weight!.dense(), 0.5))).dataSync()[0]!));
    await applyMethod(model, halving({ fit }), { at, calibrate: { batches, onFit: ({ loss }) => losses.push(loss) } });
    expect(losses[0]).toBeCloseTo(
      norms.reduce((total, norm) => total + norm),
      3,
    );
    expect(losses.at(-1)!).toBeLessThan(0.5 * losses[0]!);
    expect([sizes[0], sizes.at(-1)]).toEqual([0, 39 / 40]);
    end();
  });

  it('names the window whose loss is not finite, and gives the model back', async () => {
    const before = model.sites(at).map(({ weight }) => weight);
    const live = memory().numTensors;
    const work = applyMethod(model, halving({ fit: { loss: (output) => mul(sum(output['h']!), NaN) as Scalar } }), {
      at,
      calibrate: { batches },
    });
    await expect(work).rejects.toThrow(NumericError);
    await expect(work).rejects.toThrow(/step 0 of the window model.layers.0, model.layers.1/);
    expect(model.sites(at).map(({ weight }) => weight)).toEqual(before);
    expect(memory().numTensors).toBe(live);
    end();
  });

  it('stops between steps when it is told to, and takes away what was lent', async () => {
    const before = model.sites(at).map(({ weight }) => weight);
    const live = memory().numTensors;
    const stop = new AbortController();
    const work = applyMethod(model, halving(), {
      at,
      calibrate: { batches, onFit: ({ done }) => void (done === 3 && stop.abort()) },
      signal: stop.signal,
    });
    await expect(work).rejects.toThrow(AbortError);
    expect(model.sites(at).map(({ weight }) => weight)).toEqual(before);
    expect(memory().numTensors).toBe(live);
    end();
  });

  it('needs the float outputs beside its own', async () => {
    const work = applyMethod(model, halving({ walk: { advance: 'current' } }), { at, calibrate: { batches } });
    await expect(work).rejects.toThrow(/fitting needs walk: \{ advance: 'both' \}/);
    end();
  });
});
