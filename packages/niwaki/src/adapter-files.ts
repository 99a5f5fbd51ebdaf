import { adapterFiles as lowrank } from '@niwaki/lowrank';
import type { AdapterFile } from '@niwaki/peft';
import { adapterFiles as sparse } from '@niwaki/sparse';

/** Every type of adapter that Niwaki has. */
export const adapterFiles: readonly AdapterFile[] = [...lowrank, ...sparse];
