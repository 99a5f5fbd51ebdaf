import { describe, expect, it } from 'vitest';
import { applyMethod, disposeBatch, languageBatch, type Method } from '@niwaki/engine';
import type { Model } from '@niwaki/nn';
import type { NiwakiError, Token } from '@niwaki/tensor';
import { masked, packMask, weightTraits } from '@niwaki/weights';
import { bytesOf, expectReplays, logits, onTiny, rows, siteParameters, train } from './contract-model.ts';

/** What a method that makes weights says of itself is in its traits. Each claim is tested, and so is its opposite. */
export interface WeightMethodCase {
  /** A new method each time, for the wide model: rows of 32 entries. */
  make(): Method;
  /** Why devices come to other codes: what they lose is compared then, and not their outputs. */
  readonly drifts?: string;
}

/** Rows of 32 entries hold a block of every format. */
export const wide = { hidden_size: 32, intermediate_size: 32, head_dim: 8 };

/** Puts a method's weights in all linear maps of a model, with two sequences to calibrate with if it asks for inputs. */
export async function applyEverywhere(model: Model, method: Method, at: string | readonly string[] = 'all-linear'): Promise<void> {
  if (!method.traits.needs?.includes('inputs')) return void (await applyMethod(model, method, { at }));
  const batch = languageBatch(
    rows.map((ids) => ({ ids })),
    { vocabularySize: model.info.vocabularySize },
  );
  try {
    await applyMethod(model, method, { at, calibrate: { batches: [batch] } });
  } finally {
    disposeBatch(batch);
  }
}

/**
 * The contract of methods that make weights: one test a rule, for each one entered.
 * @example weightMethodContract('nf4', { make: () => nf4({ blockSize: 32 }) });
 */
export function weightMethodContract(name: string, { make }: WeightMethodCase): void {
  describe(`${name}`, () => {
    it('is data: its recipe is its kind and its options, and nothing is lost in it', () => {
      const method = make();
      expect(JSON.parse(JSON.stringify(method))).toEqual({ kind: method.kind, options: method.options });
    });

    it('makes weights that give what its traits say, no more and no less', () =>
      onTiny(async (model) => {
        const method = make();
        const { gives = [], keeps = [] } = method.traits;
        const [site] = model.sites('all-linear');
        const before = weightTraits(site!.weight!).gives!;
        await applyEverywhere(model, method);
        const stored = gives.filter((token) => token !== 'alone');
        const expected = new Set<Token>([...stored, ...keeps.filter((token) => before.includes(token))]);
        for (const { weight } of model.sites('all-linear')) expect(new Set(weightTraits(weight!).gives)).toEqual(expected);
      }, wide));

    it('leaves the zeros of a pruned matrix at 0, where it trains too, or is refused there and would not', () =>
      onTiny(async (model) => {
        const method = make();
        const { gives = [], forbids = [] } = method.traits;
        await pruneMost(model);
        const before = await zerosOf(model);
        const outcome = async (applied: Method): Promise<unknown> => {
          try {
            await applyEverywhere(model, applied);
          } catch (error) {
            return (error as NiwakiError).details['token'] ?? 'fails';
          }
          if (gives.includes('trains')) await train(model, { steps: 2 });
          const after = await zerosOf(model);
          return before.every((flags, s) => flags.every((zero, e) => !zero || after[s]![e])) ? 'keeps' : 'fills';
        };
        const keeps = !forbids.includes('zeros');
        expect(await outcome(method)).toBe(keeps ? 'keeps' : 'zeros');
        const unchecked = { ...method, traits: { ...method.traits, forbids: [] } };
        expect(keeps || ['fails', 'fills'].includes((await outcome(unchecked)) as string)).toBe(true);
      }, wide));

    it('gives the same bits twice, the same outputs after a forward, and leaves nothing but its weights', async () => {
      const found: Map<string, string>[] = [];
      for (let run = 0; run < 2; run++) {
        await onTiny(async (model) => {
          await applyEverywhere(model, make());
          const first = await logits(model);
          expect(first.every(Number.isFinite)).toBe(true);
          expect(await logits(model)).toEqual(first);
          found.push(await bytesOf(siteParameters(model)));
        }, wide);
      }
      expect(found[1]).toEqual(found[0]);
    });

    if (make().traits.gives?.includes('lookup') || make().traits.keeps?.includes('lookup')) return;
    it.each(['exact', 'int8'] as const)('is replayed as it runs, token by token, %s activations', (activations) =>
      onTiny(async (model) => {
        await applyEverywhere(model, make());
        await expectReplays(model, activations);
      }, wide),
    );

    it('says that its weights look no rows up, and is refused at an embedding', () =>
      onTiny(async (model) => {
        const given = await bytesOf(siteParameters(model));
        await expect(applyEverywhere(model, make(), 'embed_tokens')).rejects.toMatchObject({ details: { token: 'lookup' } });
        expect(await bytesOf(siteParameters(model))).toEqual(given);
      }, wide));
  });
}

/** Three of four entries of each linear map, in every row. */
async function pruneMost(model: Model): Promise<void> {
  for (const { path, weight } of model.sites('all-linear')) {
    const [out, width] = weight!.shape;
    const kept = Uint8Array.from({ length: out * width }, (_, e) => ((e * 7) % 4 === 0 ? 1 : 0));
    model.replace(path, masked(path, weight!, packMask(kept)), { keep: true });
  }
}

async function zerosOf(model: Model): Promise<boolean[][]> {
  const found: boolean[][] = [];
  for (const { weight } of model.sites('all-linear')) {
    const dense = weight!.dense();
    found.push(Array.from(await dense.data(), (value) => value === 0));
    dense.dispose();
  }
  return found;
}
