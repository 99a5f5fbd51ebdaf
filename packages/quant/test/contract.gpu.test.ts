import { parityContract } from '../../testing/src/parity-contract.ts';
import { awq } from '../src/index.ts';
import { quantizers } from './contract-list.ts';

// What AWQ cuts may differ between devices; all else of it may not.
await parityContract('methods', { ...quantizers, 'awq, nothing cut': { make: () => awq({ groupSize: 32, clip: false }) } });
