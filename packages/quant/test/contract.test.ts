import { weightMethodContract } from '../../testing/src/weight-method-contract.ts';
import { quantizers } from './contract-list.ts';

for (const [name, method] of Object.entries(quantizers)) weightMethodContract(name, method);
