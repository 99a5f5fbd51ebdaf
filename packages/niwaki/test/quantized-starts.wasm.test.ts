import { describe, expect, it } from 'vitest';
import { memoryFolderSink } from '@niwaki/hub';
import {
  adapt,
  filesFolder,
  load,
  loadAdapter,
  loftq,
  lora,
  lqLora,
  nf4,
  normalFloat,
  pissa,
  rtn,
  saveAdapter,
  saveQuantized,
  type Initializer,
  type LqLoraAllocation,
} from '../src/index.ts';
import { distance, logits, onTiny, train } from '../../testing/src/contract-model.ts';

const wide = { hidden_size: 64, intermediate_size: 64, head_dim: 16 };

describe('adapters with a base that was quantized for them', () => {
  it.each<[string, () => Initializer]>([
    ['LoftQ', () => loftq({ quantizer: nf4(), iterations: 2 })],
    ['LQ-LoRA', () => lqLora({ quantizers: [rtn({ bits: 3, groupSize: 64 })] })],
    ['PiSSA', () => pissa({ quantizer: nf4({ doubleQuant: false }) })],
  ])('%s: base and adapter saved after training give the same bits when both are loaded', (_, start) =>
    onTiny(async (model) => {
      const set = await adapt(model, lora({ rank: 4, alpha: 8, init: start() }), { at: 'all-linear' });
      await train(model, { steps: 3 });
      const given = await logits(model);
      const [base, adapter] = [memoryFolderSink(), memoryFolderSink()];
      await saveAdapter(set, adapter, { form: 'native' });
      model.active = [];
      await saveQuantized(model, base);
      const { model: again } = await load(filesFolder(base.files));
      await loadAdapter(again, adapter.files);
      expect(await logits(again)).toEqual(given);
      again.dispose();
    }, wide),
  );

  it('take the formats of the paper for a budget of 2.75 bits, and lose less than the one that fits it everywhere', () =>
    onTiny(async (model) => {
      const fields = { blockSize: 32, groupSize: 64 } as const;
      // The last divides no matrix of [32, 64], and is left out there.
      const quantizers = [
        normalFloat({ bits: 2, scaleBits: 2, scaleType: 'bfloat16', ...fields }),
        normalFloat({ bits: 3, ...fields }),
        normalFloat({ bits: 4, scaleBits: 4, ...fields }),
        normalFloat({ bits: 8, blockSize: 64, groupSize: 64 }),
      ];
      let report: LqLoraAllocation | undefined;
      const start = lqLora({ quantizers, bits: 2.75, iterations: 3, onAllocation: (made) => (report = made) });
      await adapt(model, lora({ rank: 4, init: start }), { at: ['q_proj', 'k_proj', 'down_proj'] });
      expect(report!.optimal).toBe(true);
      expect(report!.bits).toBeLessThanOrEqual(2.75);
      expect(report!.bits).toBeGreaterThan(2.6);
      const chosen = report!.sites.map(({ quantizer }) => (quantizer.options as { bits: number }).bits);
      expect(new Set(chosen).size).toBeGreaterThan(1);
      const lost = (sites: LqLoraAllocation['sites']): number => sites.reduce((sum, { error }) => sum + error ** 2, 0);
      await onTiny(async (other) => {
        let single: LqLoraAllocation | undefined;
        const onAllocation = (made: LqLoraAllocation): void => void (single = made);
        const alone = lqLora({ quantizers: [quantizers[0]!], bits: 2.75, iterations: 3, onAllocation });
        await adapt(other, lora({ rank: 4, init: alone }), { at: ['q_proj', 'k_proj', 'down_proj'] });
        expect(lost(report!.sites)).toBeLessThan(lost(single!.sites));
      }, wide);
    }, wide));

  it('start nearer to the float model than codes alone', () =>
    onTiny(async (model) => {
      const float = await logits(model);
      const gaps = new Map<string, number>();
      for (const [name, init] of [
        ['alone', undefined],
        ['loftq', loftq({ quantizer: nf4(), iterations: 3 })],
        ['pissa', pissa({ quantizer: nf4() })],
      ] as const)
        await onTiny(async (other) => {
          await adapt(other, lora({ rank: 16, init: init ?? loftq({ quantizer: nf4() }) }), { at: 'all-linear' });
          if (init === undefined) other.active = [];
          gaps.set(name, distance(await logits(other), float));
        }, wide);
      expect(gaps.get('loftq')!).toBeLessThan(gaps.get('alone')!);
      expect(gaps.get('pissa')!).toBeLessThan(gaps.get('alone')!);
    }, wide));
});
