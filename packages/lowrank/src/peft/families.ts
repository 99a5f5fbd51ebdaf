import type { PeftFamily } from './family.ts';
import { ia3Family } from './ia3-family.ts';
import { loraFamily } from './lora-family.ts';

/** Adapter files that can be read and written, by `peft_type`. */
export const peftFamilies: ReadonlyMap<string, PeftFamily> = new Map([loraFamily, ia3Family].map((family) => [family.peftType, family]));
