import { adapterContract } from '../../testing/src/adapter-contract.ts';
import { weightMethodContract } from '../../testing/src/weight-method-contract.ts';
import { adapters, pruners } from './contract-list.ts';
import { verbs } from './verbs.ts';

const contract = adapterContract(verbs);
for (const [name, method] of Object.entries(adapters)) contract(name, method);
for (const [name, method] of Object.entries(pruners)) weightMethodContract(name, method);
