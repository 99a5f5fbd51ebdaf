import type { PeftFamily } from './family.ts';
import { ia3Family } from './ia3-family.ts';
import { lnTuningFamily } from './ln-tuning-family.ts';
import { loraFamily } from './lora-family.ts';
import { prefixTuningFamily } from './prefix-tuning-family.ts';
import { promptTuningFamily, pTuningFamily } from './prompt-tuning-family.ts';
import { qstFamily } from './qst-family.ts';
import { bottleneckFamily, compacterFamily } from './sublayer-families.ts';

/** Adapter files that can be read and written, by `peft_type`. */
export const peftFamilies: ReadonlyMap<string, PeftFamily> = new Map(
  [
    loraFamily,
    ia3Family,
    lnTuningFamily,
    prefixTuningFamily,
    promptTuningFamily,
    pTuningFamily,
    bottleneckFamily,
    compacterFamily,
    qstFamily,
  ].map((family) => [family.peftType, family]),
);
