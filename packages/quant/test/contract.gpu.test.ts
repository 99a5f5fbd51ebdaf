import { parityContract } from '../../testing/src/parity-contract.ts';
import { quantizers } from './contract-list.ts';

await parityContract('methods', quantizers);
