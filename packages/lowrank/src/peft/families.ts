import type { PeftFamily } from './family.ts';
import { loraFamily } from './lora-family.ts';

/** Adapter files that can be read and written, by `peft_type`. */
export const peftFamilies: ReadonlyMap<string, PeftFamily> = new Map([loraFamily].map((family) => [family.peftType, family]));
