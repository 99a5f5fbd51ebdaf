import { parityContract } from '../../testing/src/parity-contract.ts';
import { adapters, pruners } from './contract-list.ts';

await parityContract('adapters', adapters);
await parityContract('methods', pruners);
