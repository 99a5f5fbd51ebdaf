import { expect, it } from 'vitest';
import { ConfigError, DeviceError, NiwakiError } from '../src/errors.ts';

it('knows its own class, and the base class knows all', () => {
  const device = new DeviceError('lost');
  expect(DeviceError.isInstance(device)).toBe(true);
  expect(NiwakiError.isInstance(device)).toBe(true);
  expect(ConfigError.isInstance(device)).toBe(false);
  expect([undefined, null, 'text', new Error('plain')].some((value) => NiwakiError.isInstance(value))).toBe(false);
});

it('knows errors of another copy of the package', () => {
  const foreign = Object.assign(new Error('lost'), { name: 'DeviceError', marker: 'niwaki.error' });
  expect(DeviceError.isInstance(foreign)).toBe(true);
  expect(NiwakiError.isInstance(foreign)).toBe(true);
  expect(ConfigError.isInstance(foreign)).toBe(false);
});
