import { getBackend } from '@tensorflow/tfjs-core';
import { describe, expect, it } from 'vitest';
import { filesFolder, load, memoryFolderSink, saveModel } from '@niwaki/hub';
import { blockwiseBackprop } from '@niwaki/engine';
import type { AdapterMethod } from '@niwaki/peft';
import { adapterTraits, type AdapterSet, type Model, type Site } from '@niwaki/nn';
import {
  add,
  denseParameter,
  memory,
  mul,
  tensor1d,
  tensor2d,
  tidy,
  traitTokens,
  withAdapters,
  type Giver,
  type Parameter,
  type Token,
  type Traits,
} from '@niwaki/tensor';
import { createCall, encodeGgufBlocks, ggufBlock, rowsOf, weightTraits, type GgufEncoded } from '@niwaki/weights';
import type { Verbs } from './adapter-verbs.ts';
import {
  advance,
  bytesOf,
  cloned,
  distance,
  expectReplays,
  logits,
  onTiny,
  rows,
  sameBytes,
  siteParameters,
  sizeOf,
  stepOf,
  train,
  trainable,
} from './contract-model.ts';
import { perturb, trainableOf } from './perturb.ts';
import { fitTeacher } from './planted.ts';
import { accumulationDifference, modelGradientError, tapeDifference } from './model-gradient.ts';
import { fitLogits } from './planted-model.ts';
import { extendsGraph, shapeAt, sitesOf } from './set-sites.ts';
import { baseOf, siteGradientError } from './site-gradient.ts';

/** Where few rows go through another kernel than many, sums run in another order: some units in the last place of the largest entry. */
const reordered = 4e-6;

/** What a method says of itself. Each claim is tested, and so is its opposite. */
export interface AdapterCase {
  /** A new method each time. */
  make(): AdapterMethod;
  /** Default all linear maps. */
  readonly at?: string | readonly string[];
  /** Trained numbers at a site of [out, in]; whole parameters of the set are counted on top. */
  trained(shape: readonly [number, number]): number;
  /** Trained numbers that all sites share; default 0. */
  readonly shared?: number;
  /**
   * What may be left of the difference to a planted adapter of the class after training; default 1e-3. More where the
   * same function has many forms and descent may end near none of them.
   */
  readonly leaves?: number;
  /** Promises that it does not make, and why: they are tested the other way round. */
  readonly not?: { readonly [promise in AdapterPromise]?: string };
  /** What merging into the contract's model misses, of a method that gives 'merge'. */
  readonly mergeMisses?: Token;
}

/**
 * 'startsAtBase': before training the output is the base's. 'exactGradient': not a surrogate. 'commutes': two active sets
 * give the same in either order. 'seeded': another seed starts elsewhere. 'joins': each of two active sets shows.
 * 'accumulates': two micro-batches have the gradients of one batch.
 */
export type AdapterPromise = 'startsAtBase' | 'exactGradient' | 'commutes' | 'seeded' | 'joins' | 'accumulates';

interface Context
  extends
    Required<Omit<AdapterCase, 'not' | 'mergeMisses'>>,
    Readonly<Record<AdapterPromise, boolean>>,
    Pick<AdapterMethod, 'traits' | 'rewrites'> {
  readonly mixes: boolean;
  /** What merging is refused for. */
  readonly mergeMisses: Token | undefined;
  readonly verbs: Verbs;
  start(model: Model, options?: { name?: string; seed?: number }): Promise<AdapterSet>;
  /** The same with values that show. */
  perturbed(model: Model, options?: { name?: string; seed?: number }): Promise<AdapterSet>;
  filesOf(set: AdapterSet, options?: { forTraining: boolean }): Promise<Map<string, Uint8Array>>;
  /** Makes a model hold what the file of another one's adapter fits. */
  rebase(model: Model): Promise<void>;
}

/** Sums of a few hundred f32 products in another order. */
const tolerance = 1e-5;
/** A change that is no rounding. */
const shows = 1e-4;

/**
 * The contract of adapters: one test a rule, for each method entered. A method that declares itself out of a rule is
 * tested the other way round: what says that it cannot be merged must fail to merge.
 * @example
 * const contract = adapterContract(adapterVerbs(adapterFiles));
 * contract('lora', { make: () => lora({ rank: 2 }), trained: ([out, width]) => 2 * (out + width) });
 */
export const adapterContract =
  (verbs: Verbs) =>
  (name: string, given: AdapterCase): void => {
    const defaults = {
      at: 'all-linear',
      shared: 0,
      leaves: 1e-3,
    };
    const { not = {} } = given;
    const { traits, rewrites } = given.make();
    const start: Context['start'] = (model, options = {}) => verbs.adapt(model, given.make(), { at: given.at ?? defaults.at, ...options });
    const context: Context = {
      ...defaults,
      ...given,
      startsAtBase: not.startsAtBase === undefined,
      exactGradient: not.exactGradient === undefined,
      commutes: not.commutes === undefined,
      seeded: not.seeded === undefined,
      joins: not.joins === undefined,
      accumulates: not.accumulates === undefined,
      traits,
      ...(rewrites && { rewrites }),
      // What stands on a base of its own shares no batch with others.
      mixes: (traits.gives?.includes('delta') ?? false) && rewrites === undefined,
      mergeMisses: traits.gives?.includes('merge') ? given.mergeMisses : 'merge',
      verbs,
      start,
      perturbed: async (model, options = {}) => {
        const set = await start(model, options);
        perturb(set, options.seed ?? 0);
        return set;
      },
      filesOf: async (set, { forTraining } = { forTraining: false }) => {
        const sink = memoryFolderSink();
        await verbs.save(set, sink, { form: forTraining ? 'native' : 'portable' });
        return sink.files;
      },
      rebase: async (model) => {
        if (rewrites === 'quantized') verbs.remove(model, (await start(model)).name);
      },
    };
    describe(`${name}`, () => {
      declaredRules(context);
      outputRules(context);
      trainingRules(context);
      fileRules(context);
      swapRules(context);
      companyRules(context);
      const { mergeMisses } = context;
      if (mergeMisses === undefined) mergeRules(context);
      else
        it(`is not merged for want of '${mergeMisses}', and says so`, () =>
          onTiny(async (model) => {
            await context.perturbed(model);
            const before = await bytesOf(model.parameters().values());
            await expect(verbs.merge(model)).rejects.toMatchObject({ details: { token: mergeMisses, rule: 'needs' } });
            expect(await bytesOf(model.parameters().values())).toEqual(before);
          }));
    });
  };

function declaredRules({ traits, rewrites, start }: Context): void {
  it('makes adapters that give, need and claim what its traits say', () =>
    onTiny(async (model) => {
      const set = await start(model);
      const of = (giver: Giver, { gives = [] }: Traits): Token[] => gives.filter((token) => traitTokens[token].of === giver);
      for (const adapter of set.sites.values()) {
        const { gives = [], claims = [] } = adapterTraits(adapter);
        expect([...gives].sort()).toEqual(of('adapter', traits).sort());
        expect(claims).toEqual(traits.claims ?? []);
      }
      expect(traits.claims?.includes('base-values') ?? false).toBe(rewrites !== undefined);
      if (rewrites === undefined) return;
      for (const { weight } of sitesOf(model, set)) expect([...weightTraits(weight!).gives!].sort()).toEqual(of('site', traits).sort());
    }));
}

function outputRules({ startsAtBase, rewrites, start, perturbed }: Context): void {
  it(`starts ${startsAtBase ? 'at the base' : 'elsewhere than at the base'}`, () =>
    onTiny(async (model) => {
      const base = await logits(model);
      await start(model);
      expect(distance(await logits(model), base) < tolerance).toBe(startsAtBase);
    }));

  it('changes the output once its values do', () =>
    onTiny(async (model) => {
      const base = await logits(model);
      await perturbed(model);
      expect(distance(await logits(model), base)).toBeGreaterThan(shows);
    }));

  it('is off under a view without adapters, nested too, and on again after a forward that throws', () =>
    onTiny(async (model) => {
      const base = await logits(model);
      await perturbed(model);
      const active = await logits(model);
      const off = withAdapters('none');
      const bare = await logits(model, off);
      expect(distance(bare, base) === 0).toBe(readsAsBefore(rewrites));
      expect(distance(bare, active)).toBeGreaterThan(shows);
      expect(await logits(model, withAdapters('none', off))).toEqual(bare);
      await expect(logits(model, withAdapters(['absent']))).rejects.toThrow();
      expect(await logits(model)).toEqual(active);
    }));

  it('is replayed as it runs, token by token', () =>
    onTiny(async (model) => {
      await perturbed(model);
      await expectReplays(model);
    }));

  it('stays finite on inputs of ten thousand, and holds no more memory after many forwards', () =>
    onTiny(async (model) => {
      const set = await perturbed(model);
      // What reads the streams of stages has no output without them.
      const alone = sitesOf(model, set).filter(({ path, point }) => point !== 'embedding' && set.sites.get(path)!.reads === undefined);
      for (const site of alone) {
        const [, width] = shapeAt(model, site);
        const x = tensor2d(new Float32Array(3 * width).fill(1e4), [3, width]);
        const call = createCall({ batch: {}, training: true });
        const y = tidy(() => set.sites.get(site.path)!.apply(x, (input) => baseOf(site, input, call), call, site));
        expect((await y.data()).every(Number.isFinite)).toBe(true);
        x.dispose();
        y.dispose();
      }
      const [embedding] = model.sites('embed_tokens') as [Site];
      embedding.weight!.matrix!.write(mul(embedding.weight!.matrix!.read(), 1e4));
      expect((await logits(model)).every(Number.isFinite)).toBe(true);
      const before = memory().numTensors;
      for (let i = 0; i < 30; i++) await logits(model);
      expect(memory().numTensors).toBe(before);
    }));
}

/** Whether the base is what it was while an adapter is on it, and nobody asks for that. */
const readsAsBefore = (rewrites: AdapterMethod['rewrites']): boolean => rewrites === undefined || rewrites === 'slices';

/** Contents by path, of the base as it is read: a matrix that slices train in is what it was before. */
async function baseBytes(model: Model, parameters: Iterable<Parameter>): Promise<Map<string, string>> {
  const found = await bytesOf(parameters);
  for (const { path, weight } of model.sites(() => true)) {
    if (weight!.kind !== 'trained-slice') continue;
    const dense = denseParameter(`${path}.weight`, weight!.dense(), { role: 'matrix' });
    for (const [name, content] of await bytesOf([dense])) found.set(name, content);
    dense.dispose();
  }
  return found;
}

const wide = { hidden_size: 32, intermediate_size: 32, head_dim: 8 };

async function storeAs(model: Model, format: GgufEncoded): Promise<void> {
  for (const { path, weight } of model.sites('all-linear')) {
    const blocks = await encodeGgufBlocks(path, weight!.shape, rowsOf(weight!), format);
    model.replace(path, ggufBlock(path, weight!.shape, format, blocks));
  }
}

function trainingRules(context: Context): void {
  const { trained, shared, leaves, exactGradient, startsAtBase, seeded, accumulates, rewrites, start, perturbed } = context;
  it('trains what it declares, all of it and nothing else, with optimizer state for that alone', () =>
    onTiny(async (model) => {
      const given = await bytesOf(model.parameters().values());
      const set = await perturbed(model);
      const own = trainable(model);
      const frozen = [...model.parameters().values()].filter((parameter) => !parameter.trainable);
      const base = readsAsBefore(rewrites) ? given : await bytesOf(frozen);
      const wholes = [...set.replaced.values()].reduce((sum, { shape }) => sum + sizeOf(shape), 0);
      const expected = sitesOf(model, set).reduce((sum, site) => sum + trained(shapeAt(model, site)), wholes + shared);
      expect(own.reduce((sum, { shape }) => sum + sizeOf(shape), 0)).toBe(expected);
      const before = await bytesOf(own);
      const { stateBytes } = await train(model, { steps: 3 });
      expect(stateBytes).toBe(8 * expected);
      const after = await bytesOf(own);
      expect([...after.keys()].filter((path) => after.get(path) === before.get(path))).toEqual([]);
      const all = await baseBytes(model, model.parameters().values());
      expect(new Map([...base.keys()].map((path) => [path, all.get(path)!]))).toEqual(base);
    }));

  it(`has ${exactGradient ? 'the gradients of finite differences' : 'a surrogate gradient, which finite differences do not give'}`, () =>
    onTiny(async (model) => {
      const set = await perturbed(model);
      const errors: number[] = [];
      if (extendsGraph(set)) errors.push(await modelGradientError(model));
      else {
        for (const site of sitesOf(model, set).slice(0, 2))
          errors.push(await siteGradientError(site, set.sites.get(site.path)!, shapeAt(model, site)));
      }
      expect(errors.map((error) => error < 1e-3)).toEqual(errors.map(() => exactGradient));
    }));

  it('has the same gradients block by block as on a full tape', () =>
    onTiny(async (model) => {
      await perturbed(model);
      expect(await tapeDifference(model)).toBeLessThan(1e-6);
    }));

  it(`has ${accumulates ? 'the gradients of one batch' : 'other gradients than one batch'} from two micro-batches`, () =>
    onTiny(async (model) => {
      await perturbed(model);
      expect((await accumulationDifference(model)) < (getBackend() === 'cpu' ? 1e-6 : reordered)).toBe(accumulates);
    }));

  if (rewrites !== undefined) {
    it('refuses a base of codes, and changes nothing', () =>
      onTiny(async (model) => {
        await storeAs(model, 'Q4_0');
        const given = await bytesOf(siteParameters(model));
        await expect(start(model)).rejects.toMatchObject({ details: { token: 'floats' } });
        expect(await bytesOf(siteParameters(model))).toEqual(given);
      }, wide));
  }

  it.each<GgufEncoded>(rewrites === undefined ? ['Q4_0', 'BF16'] : ['BF16'])('learns on a base stored as %s, whose bytes stay', (format) =>
    onTiny(async (model) => {
      await storeAs(model, format);
      const given = await bytesOf(siteParameters(model));
      const outputs = await logits(model);
      await start(model);
      expect(distance(await logits(model), outputs) < tolerance).toBe(startsAtBase);
      const base = rewrites === undefined ? given : await baseBytes(model, siteParameters(model));
      const { losses } = await train(model, { steps: 12, rate: 0.02 });
      expect(losses.at(-1)).toBeLessThan(losses[0]! - 0.01);
      expect(await baseBytes(model, siteParameters(model))).toEqual(base);
    }, wide),
  );

  it('finds a planted adapter of its own class', () =>
    onTiny(async (model) => {
      const student = await start(model, { name: 'student', seed: 4 });
      const [site] = sitesOf(model, student).filter(({ point }) => point !== 'embedding');
      // In a model of its own: beside an adapter that rewrote the base there is no other.
      await onTiny(async (other) => {
        const teacher = await perturbed(other, { name: 'teacher', seed: 3 });
        const [before, after] = extendsGraph(student)
          ? await fitLogits(model, await logits(other), { steps: 200 })
          : await fitTeacher(site!, teacher.sites.get(site!.path)!, student.sites.get(site!.path)!, {
              steps: 400,
              width: shapeAt(model, site!)[1],
            });
        expect(before).toBeGreaterThan(0.1);
        expect(after).toBeLessThan(leaves);
      });
    }));

  it.each(['full', 'selective'] as const)('computes a block again bit for bit, whatever it draws: %s', (recompute) =>
    onTiny(async (model) => {
      await perturbed(model);
      await expect(train(model, { steps: 2, estimator: blockwiseBackprop({ recompute, verifyRecompute: true }) })).resolves.toBeDefined();
    }),
  );

  it(`gives the same bits for the same seed, and ${seeded ? 'others for another' : 'for every other'}`, async () => {
    const run = async (seed: number): Promise<Map<string, string>> => {
      const found = new Map<string, string>();
      await onTiny(async (model) => {
        await start(model, { seed });
        await train(model, { steps: 3 });
        for (const [path, bytes] of await bytesOf(trainable(model))) found.set(path, bytes);
      });
      return found;
    };
    const first = await run(4);
    expect(await run(4)).toEqual(first);
    const second = await run(5);
    expect([...second].every(([path, bytes]) => first.get(path) === bytes)).toBe(!seeded);
  });
}

function fileRules({ verbs, rewrites, start, perturbed, filesOf, rebase }: Context): void {
  it('comes back from its file in another model: bytes, config, logits', () =>
    onTiny(async (model) => {
      const set = await perturbed(model);
      const [given, files] = [await logits(model), await filesOf(set)];
      await onTiny(async (other) => {
        await rebase(other);
        const loaded = await verbs.load(other, files, { name: 'other' });
        // The sum with the original base is rounded in another order than that with what was made of it.
        expect(distance(await logits(other), given)).toBeLessThanOrEqual(rewrites === 'residual' || rewrites === 'slices' ? tolerance : 0);
        const again = await filesOf(loaded);
        expect([...again.keys()]).toEqual([...files.keys()]);
        for (const [file, bytes] of files) expect([file, sameBytes(again.get(file)!, bytes)]).toEqual([file, true]);
      });
    }));

  it('goes on after saving and loading as if it had not stopped', async () => {
    let whole = new Map<string, string>();
    await onTiny(async (model) => {
      await start(model);
      await train(model, { steps: 6 });
      whole = await bytesOf(trainable(model));
    });
    await onTiny(async (model) => {
      const set = await start(model);
      const step = stepOf(model);
      await advance(model, step, { from: 0, steps: 3 });
      const files = await filesOf(set, { forTraining: true });
      await onTiny(async (other) => {
        await rebase(other);
        await verbs.load(other, files, { trainable: true });
        const next = stepOf(other);
        next.restore(new Map([...step.state()].map(([path, state]) => [path, cloned(state)])), step.updates());
        await advance(other, next, { from: 3, steps: 3 });
        next.dispose();
        expect(await bytesOf(trainable(other))).toEqual(whole);
      });
      step.dispose();
    });
  });
}

/** Hot swapping: what runs stays the same objects of the same shapes. */
function swapRules({ verbs, rewrites, start, perturbed }: Context): void {
  const withAnother = (test: (model: Model, other: Model, source: AdapterSet) => Promise<void>): Promise<void> =>
    onTiny(async (model) => {
      await perturbed(model);
      await onTiny(async (other) => {
        const source = await start(other);
        perturb(source, 9);
        await test(model, other, source);
      });
    });
  if (rewrites !== undefined) {
    it('takes no values that were made for another base', () =>
      withAnother(async (model, _, source) => {
        await expect(verbs.swap(model, 'default', source)).rejects.toThrow(/rewritten/);
      }));
    return;
  }
  it('takes the values of another one, in the parameters it has', () =>
    withAnother(async (model, other, source) => {
      const [parameters, tensors] = [[...model.parameters().values()], memory().numTensors];
      await verbs.swap(model, 'default', source);
      expect(distance(await logits(model), await logits(other))).toBeLessThan(tolerance);
      expect([...model.parameters().values()].every((parameter, i) => parameter === parameters[i])).toBe(true);
      expect(memory().numTensors).toBe(tensors);
    }));
}

function companyRules(context: Context): void {
  const { mixes, rewrites, perturbed } = context;
  if (context.rewrites === undefined) severalRules(context);
  else aloneRules(context);

  const mix = async (model: Model): Promise<Float32Array> => {
    await perturbed(model, { name: 'a', seed: 1 });
    await perturbed(model, { name: 'b', seed: 2 });
    const index = tensor1d([1, -1], 'int32');
    return logits(model, withAdapters(index)).finally(() => index.dispose());
  };
  if (mixes) {
    it('serves rows of one batch with different sets', () =>
      onTiny(async (model) => {
        const mixed = await mix(model);
        const half = mixed.length / 2;
        expect(distance(mixed.subarray(0, half), await logits(model, withAdapters(['b']), [rows[0]!]))).toBeLessThan(tolerance);
        expect(distance(mixed.subarray(half), await logits(model, withAdapters('none'), [rows[1]!]))).toBeLessThan(tolerance);
      }));
  } else {
    it('is not mixed by row, and says why', () =>
      onTiny((model) =>
        expect(mix(model)).rejects.toMatchObject({
          details: rewrites === undefined ? { token: 'delta' } : { token: 'base-values', rule: 'claims' },
        }),
      ));
  }
}

function severalRules({ verbs, commutes, joins, perturbed }: Context): void {
  it('is one of several: added, switched, deleted as if it were alone', () =>
    onTiny(async (model) => {
      const base = await logits(model);
      await perturbed(model, { name: 'a', seed: 1 });
      const a = await logits(model);
      await perturbed(model, { name: 'b', seed: 2 });
      const b = await logits(model);
      verbs.activate(model, ['a']);
      expect(await logits(model)).toEqual(a);
      verbs.activate(model, ['a', 'b']);
      const both = await logits(model);
      expect(await logits(model)).toEqual(both);
      expect(Math.min(distance(both, a), distance(both, b)) > shows).toBe(joins);
      verbs.activate(model, ['b', 'a']);
      expect(distance(await logits(model), both) < tolerance).toBe(commutes);
      verbs.remove(model, 'a');
      expect(model.active).toEqual(['b']);
      expect(await logits(model)).toEqual(b);
      verbs.remove(model, 'b');
      expect(await logits(model)).toEqual(base);
    }));
}

/** What rewrote the base has its sites for itself. */
function aloneRules({ verbs, rewrites, start, perturbed }: Context): void {
  it('shares its sites with no other, and says so before anything changes', () =>
    onTiny(async (model) => {
      await perturbed(model, { name: 'a' });
      const [bytes, outputs] = [await bytesOf(model.parameters().values()), await logits(model)];
      await expect(start(model, { name: 'b' })).rejects.toThrow(/'a'/);
      expect(await bytesOf(model.parameters().values())).toEqual(bytes);
      expect(await logits(model)).toEqual(outputs);
    }));

  it(`taken off ${rewrites === 'quantized' ? 'leaves the codes it made' : 'gives the base back'}`, () =>
    onTiny(async (model) => {
      const base = await logits(model);
      await perturbed(model, { name: 'a' });
      const bare = await logits(model, withAdapters('none'));
      verbs.remove(model, 'a');
      const left = await logits(model);
      expect(distance(left, rewrites === 'quantized' ? bare : base)).toBeLessThanOrEqual(rewrites === 'residual' ? tolerance : 0);
    }));
}

function mergeRules({ verbs, rewrites, perturbed }: Context): void {
  it('merges to the same outputs, twice to the same, and leaves the base bit for bit', () =>
    onTiny(async (model) => {
      const given = await bytesOf(siteParameters(model));
      const names = rewrites === undefined ? ['a', 'b'] : ['a'];
      for (const [i, name] of names.entries()) await perturbed(model, { name, seed: i + 1 });
      verbs.activate(model, names);
      const base = rewrites === undefined ? given : await bytesOf(siteParameters(model));
      const unmerged = await logits(model);
      const tensors = memory().numTensors;
      for (let cycle = 0; cycle < 3; cycle++) {
        await verbs.merge(model);
        const merged = await bytesOf(siteParameters(model));
        expect(distance(await logits(model), unmerged)).toBeLessThan(tolerance);
        await verbs.merge(model, names);
        expect(await bytesOf(siteParameters(model))).toEqual(merged);
        await verbs.unmerge(model);
      }
      expect(memory().numTensors).toBe(tensors);
      expect(await bytesOf(siteParameters(model))).toEqual(base);
      expect(await logits(model)).toEqual(unmerged);
    }));

  it('refuses to merge what is not finite, at the last site, and changes none', () =>
    onTiny(async (model) => {
      const set = await perturbed(model);
      const last = trainableOf([...set.sites.values()].at(-1)!.parameters).at(-1)!;
      last.write(tidy(() => add(mul(last.read(), 0), Number.NaN)));
      const [before, tensors] = [await bytesOf(siteParameters(model)), memory().numTensors];
      await expect(verbs.merge(model)).rejects.toThrow(/finite/);
      expect(await bytesOf(siteParameters(model))).toEqual(before);
      expect(memory().numTensors).toBe(tensors);
      expect(model.active).toEqual(['default']);
    }));

  it('merged for good is a plain model under the names of the base, which a plain loader reads', () =>
    onTiny(async (model) => {
      const names = [...model.parameters().keys()].sort();
      await perturbed(model);
      const unmerged = await logits(model);
      await verbs.mergeForGood(model);
      expect([...model.parameters().keys()].sort()).toEqual(names);
      expect(model.adapters.size).toBe(0);
      const sink = memoryFolderSink();
      await saveModel(model, sink);
      const { model: plain } = await load(filesFolder(sink.files));
      expect(distance(await logits(plain), unmerged)).toBeLessThan(tolerance);
      plain.dispose();
    }));
}
