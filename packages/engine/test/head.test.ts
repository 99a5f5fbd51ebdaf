import { describe } from 'vitest';
import { headSuite } from './support/head-suite.ts';

describe('the head in chunks', () => {
  headSuite();
});
