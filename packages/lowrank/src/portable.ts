import type { Parameter } from '@niwaki/tensor';
import type { Adapter } from '@niwaki/nn';
import type { StoredValues } from '@niwaki/peft';
import type { LoraAdapter } from './lora-adapter.ts';
import type { LoraSettings } from './lora-options.ts';

// A pair that took a part of the base over changes the original W by s·(B·A - B₀·A₀) = s·[B, -B₀]·[A; A₀]: a plain LoRA
// of twice the rank, with the same scale.

const startOf = (adapter: Adapter): LoraAdapter['start'] => (adapter as Partial<LoraAdapter>).start;

/** The options that the portable form goes with. */
export function portableSettings(settings: LoraSettings): LoraSettings {
  const { rank, alpha, rslora, rankPattern, alphaPattern } = settings;
  const factor = rslora ? Math.SQRT2 : 2;
  const times = (pattern: Readonly<Record<string, number>>, by: number): Readonly<Record<string, number>> =>
    Object.fromEntries(Object.entries(pattern).map(([key, value]) => [key, value * by]));
  return {
    ...settings,
    rank: 2 * rank,
    alpha: factor * alpha,
    rankPattern: times(rankPattern, 2),
    alphaPattern: times(alphaPattern, factor),
    init: true,
  };
}

/** The tensors of an adapter that differ in the portable form, by slot; B' is put together on the host. */
export function portableTensors(adapter: Adapter): Map<string, StoredValues> {
  const start = startOf(adapter);
  if (start === undefined) return new Map();
  const [a, b] = ['lora_A.weight', 'lora_B.weight'].map((slot) => adapter.parameters[slot]!) as [Parameter, Parameter];
  const [rank, width] = a.shape as [number, number];
  const out = b.shape[0]!;
  return new Map([
    [
      'lora_A.weight',
      {
        shape: [2 * rank, width],
        values: async () => {
          const both = new Float32Array(2 * rank * width);
          both.set(await read(a));
          both.set(await read(start.a), rank * width);
          return both;
        },
      },
    ],
    [
      'lora_B.weight',
      {
        shape: [out, 2 * rank],
        values: async () => {
          const [now, first] = [await read(b), await read(start.b)];
          const both = new Float32Array(2 * rank * out);
          for (let row = 0; row < out; row++) {
            for (let k = 0; k < rank; k++) {
              both[2 * rank * row + k] = now[rank * row + k]!;
              both[2 * rank * row + rank + k] = -first[rank * row + k]!;
            }
          }
          return both;
        },
      },
    ],
  ]);
}

const read = async (parameter: Parameter): Promise<Float32Array> => (await parameter.read().data()) as Float32Array;
