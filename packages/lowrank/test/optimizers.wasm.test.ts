import { transformContract } from '../../testing/src/transform-contract.ts';
import { optimizers } from './contract-list.ts';

for (const [name, optimizer] of Object.entries(optimizers)) transformContract(name, optimizer);
