import type { Token, Traits } from '@niwaki/tensor';
import { isSparse } from './entry-mask.ts';
import { isHalf, storedValues } from './stored-values.ts';
import type { Weight } from './weight.ts';

/** What a stored matrix gives, read off what it has. */
export function weightTraits(weight: Weight): Traits {
  const gives: Token[] = [];
  if (holdsFloats(weight)) gives.push('floats');
  if (trains(weight)) gives.push('trains');
  if (weight.encode !== undefined) gives.push('encode');
  if (weight.lookup !== undefined) gives.push('lookup');
  if (isSparse(weight)) gives.push('zeros');
  // An adapter trains inside of it: who puts another matrix there would take that away.
  return weight.kind === 'trained-slice' ? { gives, needs: ['base-values'] } : { gives };
}

function holdsFloats(weight: Weight): boolean {
  const values = storedValues(weight);
  return weight.exact === true || values.kind === 'dense' || isHalf(values);
}

/** Whether an update can be added to it: to the whole matrix, or to the values of the entries that are stored. */
const trains = ({ matrix, parts }: Weight): boolean => matrix !== undefined || Object.values(parts).some(({ role }) => role === 'values');
