import { parityContract } from '../../testing/src/parity-contract.ts';
import { adapters, moduleAdapters, optimizers, quantizedAdapters, residualAdapters, weightMethods } from './contract-list.ts';

await parityContract('adapters', { ...adapters, ...moduleAdapters, ...residualAdapters, ...quantizedAdapters });
await parityContract('optimizers', optimizers);
await parityContract('methods', weightMethods);
