import { weightMethodContract } from '../../testing/src/weight-method-contract.ts';
import { weightMethods } from './contract-list.ts';

for (const [name, method] of Object.entries(weightMethods)) weightMethodContract(name, method);
