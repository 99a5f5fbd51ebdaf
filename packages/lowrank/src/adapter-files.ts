import type { AdapterFile } from '@niwaki/peft';
import { bottleneckFile } from './bottleneck.ts';
import { compacterFile } from './compacter.ts';
import { ia3File } from './ia3.ts';
import { lnTuningFile } from './ln-tuning.ts';
import { loraFile } from './lora.ts';
import { prefixTuningFile } from './prefix-tuning.ts';
import { promptTuningFile, pTuningFile } from './prompt-tuning.ts';
import { qstFile } from './qst.ts';

/** Files of this package's adapters: for `loadAdapter(model, files, { types: adapterFiles })`. */
export const adapterFiles: readonly AdapterFile[] = [
  loraFile,
  ia3File,
  lnTuningFile,
  prefixTuningFile,
  promptTuningFile,
  pTuningFile,
  bottleneckFile,
  compacterFile,
  qstFile,
];
