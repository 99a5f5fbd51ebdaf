import { describe, expect, it } from 'vitest';
import { memory, openMemoryLedger } from '@niwaki/tensor';
import { adapt, blockwiseBackprop, dora, ia3, lora, nf4, prefixTuning, quantize, rtn, type Estimator, type Model } from '../src/index.ts';
import { differentiate, withBatch } from '../../testing/src/model-gradient.ts';
import { perturb } from '../../testing/src/perturb.ts';
import { tinyLlama } from '../../testing/src/tiny-llama.ts';

const frozen = (config: Record<string, unknown> = {}): Promise<Model> => tinyLlama(config, { trainable: false });
const wide = { hidden_size: 64, intermediate_size: 64, head_dim: 16 };

/** Models with something of each kind that a block may save. */
const cases: Readonly<Record<string, () => Promise<Model>>> = {
  'all parameters': () => tinyLlama(),
  'all parameters, the embedding in two places': () => tinyLlama({ tie_word_embeddings: true }),
  lora: async () => {
    const model = await frozen();
    perturb(await adapt(model, lora({ rank: 2 }), { at: 'all-linear' }), 1);
    return model;
  },
  'lora with dropout over nf4': async () => {
    const model = await frozen(wide);
    await quantize(model, nf4());
    perturb(await adapt(model, lora({ rank: 2, dropout: 0.3 }), { at: 'all-linear' }), 1);
    return model;
  },
  'dora with dropout over integers': async () => {
    const model = await frozen(wide);
    await quantize(model, rtn({ bits: 4 }));
    perturb(await adapt(model, dora({ rank: 2, dropout: 0.3 }), { at: 'all-linear' }), 1);
    return model;
  },
  'prefix tuning and ia3': async () => {
    const model = await frozen();
    perturb(await adapt(model, prefixTuning({ virtualTokens: 3 }), { at: '**.self_attn', name: 'prefixes' }), 1);
    perturb(await adapt(model, ia3(), { at: ['v_proj', 'down_proj'], name: 'factors' }), 2);
    model.active = ['prefixes', 'factors'];
    return model;
  },
};

describe.each(Object.entries(cases))('%s', (_, make) => {
  it('has the same gradients bit for bit whatever is computed again, for more bytes the less that is', async () => {
    const before = memory().numTensors;
    const model = await make();
    const ledger = openMemoryLedger();
    await withBatch(model, async (batch) => {
      const measured = async (estimator: Estimator): Promise<{ given: unknown; peak: number }> => {
        ledger.resetPeak();
        const given = await differentiate(model, batch, { estimator });
        return { given, peak: ledger.peak() };
      };
      await measured(blockwiseBackprop());
      const [full, selective, none] = [
        await measured(blockwiseBackprop({ recompute: 'full' })),
        await measured(blockwiseBackprop({ recompute: 'selective' })),
        await measured(blockwiseBackprop({ recompute: 'none' })),
      ];
      const between = await measured(blockwiseBackprop({ memoryBudget: Math.round((selective.peak + none.peak) / 2) }));
      for (const { given } of [selective, between, none]) expect(given).toEqual(full.given);
      expect(full.peak).toBeLessThan(none.peak);
      expect(selective.peak).toBeLessThan(none.peak);
      await differentiate(model, batch, { estimator: blockwiseBackprop({ recompute: 'selective', verifyRecompute: true }) });
    });
    ledger.dispose();
    model.dispose();
    expect(memory().numTensors).toBe(before);
  });
});
