import { adapterContract } from '../../testing/src/adapter-contract.ts';
import { adapters } from './contract-list.ts';
import { verbs } from './verbs.ts';

const contract = adapterContract(verbs);
for (const [name, method] of Object.entries(adapters)) contract(name, method);
