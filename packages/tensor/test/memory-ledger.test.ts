import { describe, expect, it } from 'vitest';
import { add, cast, memory, openMemoryLedger, reshape, stopGradient, tensor1d, tidy, zeros } from '../src/index.ts';

describe('a memory ledger', () => {
  it('counts every buffer when it comes and when it goes', () => {
    const ledger = openMemoryLedger();
    const start = ledger.bytes();
    const [a, b] = [zeros([100]), cast(zeros([10]), 'bool')];
    expect(ledger.bytes() - start).toBe(400 + 40 + 10);
    a.dispose();
    b.dispose();
    expect(ledger.bytes() - start).toBe(40);
    ledger.dispose();
  });

  it('counts what tensors share once, where the counter of tfjs counts twice', () => {
    const ledger = openMemoryLedger();
    const [start, theirs] = [ledger.bytes(), memory().numBytes];
    const a = tensor1d([1, 2, 3, 4]);
    const shared = [reshape(a, [2, 2]), stopGradient(a)];
    expect(ledger.bytes() - start).toBe(16);
    expect(memory().numBytes - theirs).toBe(48);
    a.dispose();
    expect(ledger.bytes() - start).toBe(16);
    for (const each of shared) each.dispose();
    expect(ledger.bytes() - start).toBe(0);
    ledger.dispose();
  });

  it('sees a peak inside a tidy that is gone when anybody could look', () => {
    const ledger = openMemoryLedger();
    const a = zeros([1000]);
    ledger.resetPeak();
    const start = ledger.bytes();
    tidy(() => {
      const b = add(a, a);
      const c = add(b, b);
      b.dispose();
      add(c, c);
    });
    expect(ledger.bytes()).toBe(start);
    expect(ledger.peak() - start).toBe(8000);
    a.dispose();
    ledger.resetPeak();
    expect(ledger.peak()).toBe(ledger.bytes());
    ledger.dispose();
  });

  it('shares bytes out to owners, and says what is left', () => {
    const ledger = openMemoryLedger();
    const before = ledger.report();
    const [weights, state, other] = [zeros([10]), zeros([20]), zeros([3])];
    ledger.own('weights', () => weights.size * 4);
    ledger.own('state', () => state.size * 4);
    const report = ledger.report();
    expect(report.owners).toEqual({ weights: 40, state: 80 });
    expect(report.rest - before.rest).toBe(12);
    expect(report.bytes - before.bytes).toBe(132);
    expect(report.hostBytes).toBeGreaterThan(2 ** 20);
    for (const each of [weights, state, other]) each.dispose();
    ledger.dispose();
  });

  it('stops when it is disposed, and leaves others counting', () => {
    const [one, two] = [openMemoryLedger(), openMemoryLedger()];
    const start = one.bytes();
    one.dispose();
    const a = zeros([5]);
    expect([one.bytes() - start, two.bytes() - start]).toEqual([0, 20]);
    two.dispose();
    a.dispose();
    expect(two.bytes() - start).toBe(20);
  });
});
