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
  pissa,
  rtn,
  saveAdapter,
  saveQuantized,
  type Initializer,
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
