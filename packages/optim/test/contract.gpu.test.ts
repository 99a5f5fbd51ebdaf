import { parityContract } from '../../testing/src/parity-contract.ts';
import { optimizers } from './contract-list.ts';

await parityContract('optimizers', optimizers);
