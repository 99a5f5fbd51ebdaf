/** What the tests ask of vitest, from its parts that need neither vite nor a worker: they run where nothing is installed. */
import {
  ASYMMETRIC_MATCHERS_OBJECT,
  customMatchers,
  getState,
  GLOBAL_EXPECT,
  JestAsymmetricMatchers,
  JestChaiExpect,
  JestExtend,
  setState,
  type ExpectStatic,
} from '@vitest/expect';
import * as chai from 'chai';

for (const plugin of [JestExtend, JestChaiExpect, JestAsymmetricMatchers]) chai.use(plugin);

export const expect = Object.assign((value: unknown, message?: string) => chai.expect(value, message), chai.expect) as ExpectStatic;
const scope = globalThis as unknown as Record<symbol, object>;
Object.defineProperty(globalThis, GLOBAL_EXPECT, { value: expect, configurable: true });
Object.assign(expect, scope[ASYMMETRIC_MATCHERS_OBJECT]);
setState({ ...getState(expect), assertionCalls: 0, isExpectingAssertions: false }, expect);
(chai.expect as unknown as { extend(to: ExpectStatic, matchers: object): void }).extend(expect, customMatchers);

export { afterAll, afterEach, beforeAll, beforeEach, describe, it, test } from '@vitest/runner';

/** Time limits are the runner's. */
export const vi = { setConfig: (): void => {} };
