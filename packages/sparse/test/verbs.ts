import { adapterVerbs, type Verbs } from '../../testing/src/adapter-verbs.ts';
import { adapterFiles } from '../src/index.ts';

/** What puts adapters on a model, and knows this package's files. */
export const verbs: Verbs = adapterVerbs(adapterFiles);
export const { load: loadAdapter, swap: swapAdapter } = verbs;
