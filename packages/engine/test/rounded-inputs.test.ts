import { describe, expect, it } from 'vitest';
import { denseParameter, memory, mul, tidy, type Tensor2D } from '@niwaki/tensor';
import { denseWeight, tensorQuantizer, tokenQuantizer, type ActivationQuantizer } from '@niwaki/weights';
import { tokenBatch, type Model, type Site } from '@niwaki/nn';
import { applyMethod, collectInputs, defineMethod, disposeBatch, inputAbsMean, type Method, type Window } from '@niwaki/engine';
import { logits, onTiny } from '../../testing/src/contract-model.ts';

const grid = { bits: 4, symmetric: true };
const coarse = tokenQuantizer(grid);
const stepAt = ({ path }: Site): ActivationQuantizer => tensorQuantizer(path, { scale: 0.1 }, grid);
const inputs = (model: Model): (ActivationQuantizer | undefined)[] => model.sites('all-linear').map(({ input }) => input);

function rounding(make: (site: Site) => ActivationQuantizer): Method {
  return defineMethod({
    kind: 'rounding',
    options: {},
    traits: {},
    makes: 'input',
    points: ['linear', 'operand'],
    make: async (site) => ({ input: make(site) }),
  });
}

async function calibrated(model: Model, visit: (window: Window) => Promise<void>): Promise<void> {
  const batch = tokenBatch([[1, 2, 3, 4]], model.info);
  const method = defineMethod({
    kind: 'visiting',
    options: {},
    traits: {},
    makes: 'weight',
    walk: { width: 2, stride: 1, advance: 'both' },
    visit,
    make: async () => ({}),
  });
  try {
    await applyMethod(model, method, { at: 'down_proj', calibrate: { batches: [batch] } });
  } finally {
    disposeBatch(batch);
  }
}

/** A weight of its own tensor, twice what the site stores. */
function doubled({ path, weight }: Site): ReturnType<typeof denseWeight> {
  const matrix = tidy(() => mul(weight!.dense(), 2)) as Tensor2D;
  return denseWeight(denseParameter(`${path}.weight`, matrix, { role: 'matrix' }));
}

describe('a method that makes inputs', () => {
  it('rounds them at every site it is told, operands too, and leaves the weights alone', () =>
    onTiny(async (model) => {
      const weights = model.sites('all-linear').map(({ weight }) => weight);
      const seen: string[] = [];
      const { made } = await applyMethod(
        model,
        rounding(() => coarse),
        {
          at: ['q_proj', 'keys'],
          onProgress: ({ done, total, path }) => seen.push(`${path} ${done}/${total}`),
        },
      );
      expect(seen.at(-1)).toBe('model.layers.1.self_attn.q_proj 4/4');
      expect([...made.values()].every(({ input }) => input === coarse)).toBe(true);
      expect(inputs(model).filter((input) => input === coarse)).toHaveLength(2);
      expect(model.sites('all-linear').map(({ weight }) => weight)).toEqual(weights);
    }));

  it('takes all of it back where one fails, what was there before included', () =>
    onTiny(async (model) => {
      await applyMethod(model, rounding(stepAt), { at: 'up_proj' });
      const before = inputs(model);
      const tensors = memory().numTensors;
      const failing = rounding((site) => {
        if (site.path.startsWith('model.layers.1')) throw new Error('no');
        return stepAt(site);
      });
      await expect(applyMethod(model, failing, { at: 'up_proj', undoBytes: 0 })).rejects.toThrow(/rounding at .*layers.1.*no/);
      expect(inputs(model)).toEqual(before);
      expect(memory().numTensors).toBe(tensors);
      await applyMethod(model, rounding(stepAt), { at: 'up_proj' });
      expect(inputs(model)).not.toEqual(before);
      expect(memory().numTensors).toBe(tensors);
    }));
});

describe('an input that is lent', () => {
  it('stays for good where it is put, beside the weight or without one', () =>
    onTiny(async (model) => {
      const lent: (ActivationQuantizer | undefined)[] = [];
      await calibrated(model, async (window) => {
        for (const site of window.groups.flat()) {
          window.lend(site, doubled(site));
          window.lendInput(site, stepAt(site));
          window.lendInput(site, stepAt(site)); // the first is gone
          lent.push(window.lentInput(site));
          expect(site.input).toBe(window.lentInput(site));
        }
        for (const site of window.leaving) window.replace(site, { weight: doubled(site), input: window.lentInput(site)! });
        const operand = model.sites('model.layers.0.self_attn.keys', { points: ['operand'] })[0]!;
        window.replace(operand, { input: coarse });
      });
      const sites = model.sites('down_proj');
      expect(sites.map(({ input }) => input)).toEqual([lent[0], lent.at(-1)]);
      for (const { input } of sites) expect(Object.values(input!.parts)[0]!.read().shape).toEqual([1]);
      expect(model.sites('keys', { points: ['operand'] })[0]!.input).toBe(coarse);
    }));

  it('is gone however the walk ends, with what was put', () =>
    onTiny(async (model) => {
      const before = await logits(model);
      const tensors = memory().numTensors;
      const failure = calibrated(model, async (window) => {
        for (const site of window.groups.flat()) window.lendInput(site, stepAt(site));
        for (const site of window.leaving) window.replace(site, { weight: doubled(site), input: window.lentInput(site)! });
        throw new Error('no');
      });
      await expect(failure).rejects.toThrow('no');
      expect(inputs(model).every((input) => input === undefined)).toBe(true);
      expect(await logits(model)).toEqual(before);
      expect(memory().numTensors).toBe(tensors);
    }));
});

it('statistics are of what each matrix multiplies with, taken once where that is the same', () =>
  onTiny(async (model) => {
    const [q, k, v] = ['q_proj', 'k_proj', 'v_proj'].map((name) => model.sites(`model.layers.0.self_attn.${name}`)[0]!);
    const batch = tokenBatch([[1, 2, 3, 4]], model.info);
    const means = async (): Promise<{ readonly same: string; readonly values: readonly number[] }> => {
      const { of, release } = await collectInputs(model, [q!, k!, v!], { mean: inputAbsMean() }, { batches: [batch], kind: 'test' });
      const [a, b, c] = [of.get(q!)!.mean, of.get(k!)!.mean, of.get(v!)!.mean];
      const same = [a === b, b === c].join();
      const values = [(await a.data())[0]!, (await b.data())[0]!, (await c.data())[0]!];
      release();
      return { same, values };
    };
    const plain = await means();
    expect(plain.same).toBe('true,true');
    model.replaceInput(q!.path, tokenQuantizer({ bits: 2, symmetric: true }));
    const one = await means();
    expect(one.same).toBe('false,true');
    expect(one.values[0]).not.toBe(plain.values[0]);
    expect(one.values.slice(1)).toEqual(plain.values.slice(1));
    for (const { path } of [q!, k!, v!]) model.replaceInput(path, tokenQuantizer({ bits: 2, symmetric: true }));
    expect((await means()).same).toBe('true,true');
    model.replaceInput(k!.path, stepAt(k!));
    expect((await means()).same).toBe('false,false');
    disposeBatch(batch);
  }));
