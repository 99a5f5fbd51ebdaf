import type { AdapterFile } from '@niwaki/peft';
import { s2ftFile } from './s2ft.ts';
import { sftFile } from './spiel.ts';

/** Files of this package's adapters: for `loadAdapter(model, files, { types: adapterFiles })`. */
export const adapterFiles: readonly AdapterFile[] = [s2ftFile, sftFile];
