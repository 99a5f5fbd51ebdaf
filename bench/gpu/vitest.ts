/** What the tests ask of vitest, from its parts that need neither vite nor a worker: they run where nothing is installed. */
import {
  ASYMMETRIC_MATCHERS_OBJECT,
  customMatchers,
  GLOBAL_EXPECT,
  getState,
  JestAsymmetricMatchers,
  JestChaiExpect,
  JestExtend,
  setState,
} from '@vitest/expect';
import * as chai from 'chai';

chai.use(JestExtend);
chai.use(JestChaiExpect);
chai.use(JestAsymmetricMatchers);

const counted = (value: unknown, message?: string): unknown => chai.expect(value, message);
export const expect = Object.assign(counted, chai.expect) as never as (typeof import('vitest'))['expect'];
(expect as { extend: (matchers: object) => void }).extend = (matchers) =>
  (chai.expect as never as { extend(expect: unknown, matchers: object): void }).extend(expect, matchers);
Object.defineProperty(globalThis, GLOBAL_EXPECT, { value: expect, configurable: true });
Object.assign(expect, (globalThis as never as Record<symbol, object>)[ASYMMETRIC_MATCHERS_OBJECT]);
setState({ ...getState(expect as never), assertionCalls: 0, isExpectingAssertions: false }, expect as never);
(expect as { extend: (matchers: object) => void }).extend(customMatchers);

export { afterAll, afterEach, beforeAll, beforeEach, describe, it, test } from '@vitest/runner';

/** Time limits are the runner's. */
export const vi = { setConfig: (): void => {} };
