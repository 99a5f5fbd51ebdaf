import type { Format, Weight } from '@niwaki/weights';
import { awqFormat } from './format-awq.ts';
import { bnb4bit } from './format-bnb.ts';
import { bnb8bit } from './format-bnb8.ts';
import { gptqFormat } from './format-gptq.ts';

/** Formats of stored weights that this package reads and writes. */
export const formats: readonly Format<Weight>[] = [bnb4bit, awqFormat, gptqFormat, bnb8bit];
